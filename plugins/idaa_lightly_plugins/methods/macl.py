"""MACL."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss import MACLLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn

from idaa_lightly.distributed import gathered
from idaa_lightly.errors import UsageError
from idaa_lightly.options import Count, Fraction, Positive
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import LightlyRecipe, full_precision


class MACL(LightlyRecipe, PairMethod):
    """Model-aware contrastive learning (MACL): NT-Xent whose temperature rises as positive pairs agree.

    Samples that the loss has almost matched get larger weights, which makes up for their small gradients.

    Source: Huang et al., "Model-Aware Contrastive Learning: Towards Escaping the Dilemmas", ICML 2023. The temperatures
    are Lightly's defaults. The rest of the recipe is Lightly's CIFAR-10 benchmark, which has no MACL itself. The
    authors have published their loss only.

    Args:
        temperature: Temperature of pairs whose mean cosine is `threshold`.
        rise: Relative rise of the temperature per unit of the mean cosine, α in the paper.
        threshold: Mean cosine of positive pairs at which the temperature is `temperature`, A₀ in the paper.
        projection_dim: Dimension of the projection.

    Raises:
        UsageError: The temperature could reach 0.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.1,
        rise: Fraction = 0.5,
        threshold: Fraction = 0.0,
        projection_dim: Count = 128,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, **options)
        if rise * (1 + threshold) >= 1:
            raise UsageError(
                f"rise is {rise} and threshold {threshold}, so the temperature could reach 0, but expected "
                "rise · (1 + threshold) below 1: lower one of them"
            )
        self.head = SimCLRProjectionHead(num_features, num_features, projection_dim)
        self.criterion = MACLLoss(temperature, rise, threshold)

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the criterion on the projections of all ranks, in full precision, which its weights need."""
        with torch.autocast(anchor.device.type, enabled=False):
            return super().loss(*(gathered(full_precision(part)) for part in (anchor, positive)))
