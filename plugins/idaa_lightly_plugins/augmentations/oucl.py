"""OUCL: another contrast on the method's embeddings."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from idaa_lightly import OUCLLoss
from idaa_lightly.options import NonNegative, Positive
from idaa_lightly.outputs import embedding_of
from idaa_lightly.plugin import Augmentation, Method


class OUCLOutput(NamedTuple):
    """The loss, a scalar."""

    total: Tensor


class EmbeddingLoss(nn.Module):
    """A contrast of the embeddings of two views."""

    def __init__(self, contrast: nn.Module) -> None:
        super().__init__()
        self.contrast = contrast

    def forward(self, model: Method, x0: Tensor, x1: Tensor) -> OUCLOutput:
        """Views (N, C, H, W) each."""
        return OUCLOutput(self.contrast(embedding_of(model(x0)), embedding_of(model(x1))))


class OUCL(Augmentation):
    """The optimisation-driven unified contrast in place of the method's loss, without any augmentation.

    Source: Li et al., "MetAug: Contrastive Learning via Meta Feature Augmentation", ICML 2022, Sec. 3.3.

    Args:
        gamma: scale.
        margin: of the similarities.
        form: weighted as in the paper, or the default of the released program, without weights and margins.
    """

    dual_batchnorm = False

    def __init__(
        self, *, gamma: Positive = 16.0, margin: NonNegative = 0.25, form: Literal["weighted", "released"] = "weighted"
    ) -> None:
        self.contrast = OUCLLoss(gamma, margin, weighted=form == "weighted")

    @classmethod
    def refuses(cls, method: type[Method]) -> str:
        """Needs pairs of views."""
        if method.multi_crop:
            return "it contrasts the embeddings of two views, and this method predicts clusters or classes of many"
        return ""

    def loss(self, method: Method) -> nn.Module:
        """OUCL on the method's embeddings."""
        return EmbeddingLoss(self.contrast)
