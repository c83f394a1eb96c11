"""DirectCLR."""

from __future__ import annotations

from typing import Any

from lightly.loss import NTXentLoss
from torch import Tensor, nn

from idaa_lightly.options import Positive, Share
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import LightlyRecipe


class DirectCLR(LightlyRecipe, PairMethod):
    """DirectCLR: NT-Xent on the first features of the backbone, without a projection head.

    Source: Jing et al., "Understanding Dimensional Collapse in Contrastive Self-supervised Learning", ICLR 2022. The
    share is that of the authors' code for ImageNet, 360 of 2048 features, and so is the temperature. The rest of the
    recipe is Lightly's CIFAR-10 benchmark, because neither the paper nor the benchmark has DirectCLR on CIFAR-10.

    Differs from the paper: NT-Xent, as in Lightly's `DirectCLRLoss`, also has the other embeddings of the same view as
    negatives.

    Args:
        temperature: Temperature of NT-Xent, which divides the cosines.
        share: Share of the features that the loss compares.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.1,
        share: Share = 0.176,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, **options)
        self.head = _First(max(1, round(share * num_features)))
        self.criterion = NTXentLoss(temperature, gather_distributed=True)


class _First(nn.Module):
    """The first columns of features (N, D)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, features: Tensor) -> Tensor:
        return features[:, : self.count]
