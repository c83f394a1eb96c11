"""OUCL: another contrastive loss on the method's embeddings."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from idaa_lightly import OUCLLoss
from idaa_lightly.options import NonNegative, Positive, options_of
from idaa_lightly.plugin import Augmentation, Control, Method


class OUCLOutput(NamedTuple):
    """Output of `EmbeddingLoss`.

    Attributes:
        total: Contrastive loss, a scalar.
    """

    total: Tensor


class EmbeddingLoss(nn.Module):
    """Contrastive loss on the embeddings of two views.

    Args:
        contrast: Loss that is called with two batches of embeddings (N, D).
    """

    def __init__(self, contrast: nn.Module) -> None:
        super().__init__()
        self.contrast = contrast

    def forward(self, model: Method, x0: Tensor, x1: Tensor) -> OUCLOutput:
        """Compute the loss.

        Args:
            model: Method to train.
            x0: First view of the samples, (N, C, H, W).
            x1: Second view of the same samples.
        """
        return OUCLOutput(self.contrast(*model.embeddings(model(x0), model(x1))))


class OUCL(Augmentation):
    """Optimisation-driven unified contrast (OUCL), which replaces the method's loss. No view is augmented.

    Source: Li et al., "MetAug: Contrastive Learning via Meta Feature Augmentation", ICML 2022, Sec. 3.3.

    Args:
        gamma: Scale γ of the similarities.
        margin: Margin m of the similarities.
        form: Form of the loss. "weighted" is the paper's, "released" the default of the authors' code, without
            weights and margins.
    """

    dual_batchnorm = False
    adds = "OUCL"

    def __init__(
        self, *, gamma: Positive = 16.0, margin: NonNegative = 0.25, form: Literal["weighted", "released"] = "weighted"
    ) -> None:
        self.options = {"gamma": gamma, "margin": margin, "form": form}
        self.contrast = OUCLLoss(gamma, margin, weighted=form == "weighted", gather_distributed=True)

    @classmethod
    def refuses(cls, method: type[Method]) -> str:
        """Refuse methods with multi-crop, whose outputs are not compared in pairs."""
        if method.multi_crop:
            return "it contrasts the embeddings of two views, and this method compares more"
        return ""

    def controls(self, method: type[Method]) -> list[Control]:
        """Return NT-Xent at the temperature of OUCL's logits, γ (cos + 1) / 2."""
        name, temperature = "NT-Xent at OUCL's temperature", 2 / float(self.options["gamma"])
        known = "temperature" in options_of(method)
        missing = "" if known else "it has no option `temperature`"
        return [Control(name, "none", {"method": {"temperature": temperature}}, name, missing=missing)]

    def loss(self, method: Method) -> nn.Module:
        """Return OUCL on the method's embeddings."""
        return EmbeddingLoss(self.contrast)
