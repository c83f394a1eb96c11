"""DCL."""

from __future__ import annotations

from typing import Any

from lightly.loss import DCLLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import nn

from idaa_lightly.options import Count, Positive
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import LightlyRecipe


class DCL(LightlyRecipe, PairMethod):
    """Decoupled contrastive learning (DCL): NT-Xent without the positive in the denominator.

    Source: Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, Sec. 3. The recipe is Lightly's CIFAR-10 benchmark.

    Args:
        temperature: Temperature of the loss, which divides the cosines.
        projection_dim: Dimension of the projection.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.1,
        projection_dim: Count = 128,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, **options)
        self.head = SimCLRProjectionHead(num_features, num_features, projection_dim)
        self.criterion = DCLLoss(temperature, gather_distributed=True)
