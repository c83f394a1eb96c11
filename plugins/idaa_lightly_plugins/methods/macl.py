"""MACL."""

from __future__ import annotations

from typing import Any

from lightly.loss import MACLLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn

from idaa_lightly.criteria import gathered
from idaa_lightly.options import Count, Fraction, Positive
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import LightlyRecipe, full_precision


class MACL(LightlyRecipe, PairMethod):
    """Model-aware contrastive learning (MACL): NT-Xent whose temperature rises as positive pairs agree.

    Samples that the loss has almost matched get larger weights, which makes up for their small gradients.

    Source: Huang et al., "Model-Aware Contrastive Learning: Towards Escaping the Dilemmas", ICML 2023, Sec. 4. The
    temperatures are Lightly's defaults. The rest of the recipe is Lightly's CIFAR-10 benchmark, because neither the
    authors' code nor the benchmark has MACL on CIFAR-10.

    Args:
        temperature: Temperature of pairs whose mean cosine is `threshold`.
        rise: Relative rise of the temperature per unit of the mean cosine, α in the paper.
        threshold: Mean cosine of positive pairs at which the temperature is `temperature`, A₀ in the paper.
        projection_dim: Dimension of the projection.
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
        self.head = SimCLRProjectionHead(num_features, num_features, projection_dim)
        self.criterion = MACLLoss(temperature, rise, threshold)

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the criterion on the projections of all ranks."""
        return super().loss(*(gathered(full_precision(part)) for part in (anchor, positive)))
