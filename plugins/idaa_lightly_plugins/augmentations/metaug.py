"""MetAug: augmented embeddings from trained generators."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from idaa_lightly import FeatureGenerator, MetAugLoss
from idaa_lightly.metaug import Bounds
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.outputs import embedding_of
from idaa_lightly.plugin import Control, FitContext, Method
from idaa_lightly_plugins.augmentations.oucl import OUCL

PRESETS: dict[str, tuple[float, float, Literal["weighted", "released"]]] = {
    "tuned": (0.1, 0.1, "weighted"),
    "released": (1e-5, 1e-11, "released"),
}
"""`feature_weight`, `margin_weight` and `form` of each preset.

The weights of "tuned" were chosen among (1, 0), (1, 1) and (0.1, 0.1), in short runs on a part of CIFAR-10's training
images. These runs used the recipe of SimCLR, whose optimiser also trains the generators. "released" has the settings of
the authors' code, whose auxiliary terms have almost no effect.
"""


class MetAug(OUCL):
    """Contrast with generated embeddings (MetAug), whose generators are trained together with the network.

    The method's loss is replaced by OUCL. Its network, views and recipe are used unchanged.

    Source: Li et al., "MetAug: Contrastive Learning via Meta Feature Augmentation", ICML 2022, Sec. 3.

    Differs from the paper: two ordinary views, in-batch negatives and any backbone; see `MetAugLoss`. By default, the
    generators are narrower and their gradient has no look-ahead: in short runs with three seeds, this lost no accuracy.

    Args:
        preset: Default weights and form of OUCL. "tuned" was tuned in a few short runs. "released" has the settings of
            the authors' code, whose auxiliary terms have almost no effect.
        feature_weight: Weight of the contrast with generated embeddings. None takes the preset's.
        margin_weight: Weight of the margin term. None takes the preset's.
        form: Form of OUCL. "weighted" is the paper's, "released" the default of the authors' code, without weights
            and margins. None takes the preset's.
        second_order: Train the generators through a step of the network, as in the paper. False takes their gradient at
            the present network, which is much cheaper.
        inner_lr: Learning rate of the network's inner step, which is differentiated. Unused if `second_order` is false.
        bounds: Take the bounds of the margin term over the positives and negatives of each anchor, as in the authors'
            code, or over those of the batch.
        hidden_dim: Width of the generators' hidden layers. None takes 4 times the dimension of the embedding. The paper
            has 2048.
        lr: Learning rate of the generators. None takes the method's.
    """

    compiles = False
    adds = "generated embeddings"

    def __init__(
        self,
        *,
        preset: Literal["tuned", "released"] = "tuned",
        feature_weight: NonNegative | None = None,
        margin_weight: NonNegative | None = None,
        form: Literal["weighted", "released"] | None = None,
        second_order: bool = False,
        inner_lr: NonNegative = 1e-3,
        bounds: Bounds = "anchor",
        hidden_dim: Count | None = None,
        lr: NonNegative | None = None,
        **options: Any,
    ) -> None:
        preset_weights = PRESETS[preset]
        super().__init__(form=form or preset_weights[2], **options)
        self.settings: dict[str, Any] = {
            "feature_weight": preset_weights[0] if feature_weight is None else feature_weight,
            "margin_weight": preset_weights[1] if margin_weight is None else margin_weight,
            "second_order": second_order,
            "inner_lr": inner_lr,
            "bounds": bounds,
        }
        self.hidden_dim, self.lr = hidden_dim, lr

    def controls(self, method: type[Method]) -> list[Control]:
        """Return the controls of OUCL, and OUCL without generated embeddings."""
        return [*super().controls(method), Control("OUCL alone", "oucl", {"aug": self.options}, "OUCL")]

    def fit(self, context: FitContext) -> None:
        """Store the shape of the views."""
        self.shape = (2, context.channels, context.image_size, context.image_size)

    def loss(self, method: Method) -> nn.Module:
        """Return OUCL on the method's embeddings and on generated ones."""
        with torch.no_grad():
            dim = embedding_of(method.eval()(torch.zeros(self.shape))).shape[1]
        method.train()
        generators = [FeatureGenerator(dim, self.hidden_dim) for _ in range(2)]
        return MetAugLoss(
            self.contrast, generators, **self.settings, gather_distributed=True, embeddings=method.embeddings
        )
