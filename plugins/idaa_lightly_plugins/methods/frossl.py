"""FroSSL."""

from __future__ import annotations

from typing import Any

from lightly.loss import FroSSLLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn

from idaa_lightly.distributed import gathered
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import BYOLViews, LightlyRecipe

RATIO = 4  # of projection dimension to batch size: 2048 to 512 in the recipe, 1024 to 256 in the authors' code


class FroSSL(BYOLViews, LightlyRecipe, PairMethod):
    """FroSSL, which spreads projections by a small Frobenius norm of their covariance, and pulls views to their mean.

    An attack that starts at the anchor gets its gradient from the first term.

    Source: Skean et al., "FroSSL: Frobenius Norm Minimization for Efficient Multiview Self-Supervised Learning", ECCV
    2024, arXiv 2310.02903. The recipe is Lightly's CIFAR-10 benchmark, with its projection head of two layers and
    BYOL's views.

    Args:
        invariance: Weight of the invariance term. The term is proportional to the projection dimension over the batch
            size. If it outweighs the other term, projections become constant. None divides it by this ratio and
            multiplies it by 4, the ratio of the recipe and of the authors' code for CIFAR-10.
        projection_dim: Width of the projection head and dimension of the projection.
    """

    criterion: FroSSLLoss

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        invariance: NonNegative | None = None,
        projection_dim: Count = 2048,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, **options)
        self.head = VICRegProjectionHead(num_features, projection_dim, projection_dim, num_layers=2)
        self.criterion, self.invariance = FroSSLLoss(), invariance

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the criterion on the projections of all ranks."""
        views = [gathered(anchor), gathered(positive)]
        count, dim = views[0].shape
        self.criterion.invariance_weight = RATIO * count / dim if self.invariance is None else self.invariance
        loss: Tensor = self.criterion(views)
        return loss
