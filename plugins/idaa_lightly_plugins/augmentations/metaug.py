"""MetAug: augmented embeddings by generators that learn through a step of the network."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from idaa_lightly import FeatureGenerator, MetAugLoss
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.outputs import embedding_of
from idaa_lightly.plugin import FitContext, Method
from idaa_lightly_plugins.augmentations.oucl import OUCL

PRESETS: dict[str, tuple[float, float, Literal["weighted", "released"]]] = {
    "tuned": (0.1, 0.1, "weighted"),
    "released": (1e-5, 1e-11, "released"),
}
"""Weights of the augmented and the margin term, and the form of OUCL.

"tuned" was chosen among (1, 0), (1, 1) and (0.1, 0.1) in short runs with SimCLR's recipe, whose optimiser trains the
generators, too, on a part of CIFAR-10's training images. "released" are the authors' settings, whose auxiliary terms do
next to nothing.
"""


class MetAug(OUCL):
    """Contrast with generated embeddings, whose generators are trained by the second derivative through one step.

    OUCL takes the place of the method's loss: of the method its network, views and recipe are used.

    Source: Li et al., "MetAug: Contrastive Learning via Meta Feature Augmentation", ICML 2022, Sec. 3.

    Differs from the paper: two ordinary views and in-batch negatives, any backbone; see `MetAugLoss`.

    Args:
        preset: weights and form of OUCL that were tuned here, a little, or those of the released program, whose
            auxiliary terms do next to nothing.
        feature_weight: of the contrast with generated embeddings; the preset's where it is None.
        margin_weight: of the margin term; the preset's where it is None.
        form: of OUCL, as for `oucl`; the preset's where it is None.
        inner_lr: length of the network's step in the graph.
        hidden_dim: width of the generators.
        lr: learning rate of the generators; the method's where it is None.
    """

    compiles = False

    def __init__(
        self,
        *,
        preset: Literal["tuned", "released"] = "tuned",
        feature_weight: NonNegative | None = None,
        margin_weight: NonNegative | None = None,
        form: Literal["weighted", "released"] | None = None,
        inner_lr: NonNegative = 1e-3,
        hidden_dim: Count = 2048,
        lr: NonNegative | None = None,
        **options: Any,
    ) -> None:
        preset_weights = PRESETS[preset]
        super().__init__(form=form or preset_weights[2], **options)
        self.settings = {
            "feature_weight": preset_weights[0] if feature_weight is None else feature_weight,
            "margin_weight": preset_weights[1] if margin_weight is None else margin_weight,
            "inner_lr": inner_lr,
        }
        self.hidden_dim, self.lr = hidden_dim, lr

    def fit(self, context: FitContext) -> None:
        """Takes over the shape of the views."""
        self.shape = (2, context.channels, context.image_size, context.image_size)

    def loss(self, method: Method) -> nn.Module:
        """OUCL with generated embeddings."""
        with torch.no_grad():
            dim = embedding_of(method.eval()(torch.zeros(self.shape))).shape[1]
        method.train()
        return MetAugLoss(self.contrast, [FeatureGenerator(dim, self.hidden_dim) for _ in range(2)], **self.settings)
