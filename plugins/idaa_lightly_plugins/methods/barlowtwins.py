"""Barlow Twins."""

from __future__ import annotations

from typing import Any

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from idaa_lightly.distributed import gathered
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import BYOLViews, LightlyRecipe


class BarlowTwins(BYOLViews, LightlyRecipe, PairMethod):
    """Barlow Twins, which drives the cross-correlation of two views' projections to the identity matrix.

    Source: Zbontar et al., "Barlow Twins", ICML 2021, Sec. 2. The recipe is Lightly's CIFAR-10 benchmark, with its
    projection head of two layers and BYOL's views.

    Args:
        redundancy: Weight of the off-diagonal terms, λ in the paper.
        projection_dim: Width of the projection head and dimension of the projection.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        redundancy: NonNegative = 5e-3,
        projection_dim: Count = 2048,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, **options)
        self.head = ProjectionHead(
            [
                (num_features, projection_dim, nn.BatchNorm1d(projection_dim), nn.ReLU()),
                (projection_dim, projection_dim, None, None),
            ]
        )
        self.criterion = BarlowTwinsLoss(redundancy)

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the criterion on the projections of all ranks.

        With `gather_distributed`, Lightly's loss would normalise the projections by the statistics of each rank.
        """
        return super().loss(gathered(anchor), gathered(positive))
