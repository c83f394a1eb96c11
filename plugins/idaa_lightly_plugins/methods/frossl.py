"""FroSSL."""

from __future__ import annotations

from typing import Any

from lightly.loss import FroSSLLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn

from idaa_lightly.criteria import gathered
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import BYOLViews, LightlyRecipe


class FroSSL(BYOLViews, LightlyRecipe, PairMethod):
    """FroSSL, which spreads projections by a small Frobenius norm of their covariance, and pulls views to their mean.

    An attack that starts at the anchor gets its gradient from the first term.

    Source: Skean et al., "FroSSL: Frobenius Norm Minimization for Efficient Multiview Self-Supervised Learning", ECCV
    2024, arXiv 2310.02903. The recipe is Lightly's CIFAR-10 benchmark, with its projection head of two layers and
    BYOL's views.

    Args:
        invariance: Weight of the invariance term. The term is proportional to the projection dimension over the batch
            size, which is 4 for the recipe and in the authors' code for CIFAR-10. If it outweighs the other term,
            projections become constant. Halve the weight with half the batch.
        projection_dim: Width of the projection head and dimension of the projection.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        invariance: NonNegative = 1.0,
        projection_dim: Count = 2048,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, **options)
        self.head = VICRegProjectionHead(num_features, projection_dim, projection_dim, num_layers=2)
        self.criterion = FroSSLLoss(invariance)

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the criterion on the projections of all ranks."""
        loss: Tensor = self.criterion([gathered(anchor), gathered(positive)])
        return loss
