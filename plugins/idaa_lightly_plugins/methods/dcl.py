"""DCL."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightly.loss import DCLLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn

from idaa_lightly.distributed import gathered
from idaa_lightly.options import Count, Positive
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import LightlyRecipe, full_precision


class DCL(LightlyRecipe, PairMethod):
    """Decoupled contrastive learning (DCL): NT-Xent without the positive in the denominator.

    Source: Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, Sec. 3. DCLW's weights are those of Lightly's
    `DCLWLoss`. The recipe is Lightly's CIFAR-10 benchmark.

    Args:
        temperature: Temperature of the loss, which divides the cosines.
        sigma: Width of the weights of DCLW, σ in the paper; Lightly's default is 0.5. Pairs that agree less than others
            get larger weights. None gives all pairs the same weight (DCL).
        projection_dim: Dimension of the projection.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.1,
        sigma: Positive | None = None,
        projection_dim: Count = 128,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, **options)
        self.head = SimCLRProjectionHead(num_features, num_features, projection_dim)
        weights = partial(mises_fisher_weights, sigma=sigma) if sigma else None
        self.criterion = DCLLoss(temperature, weights, gather_distributed=True)


def mises_fisher_weights(anchor: Tensor, positive: Tensor, sigma: float) -> Tensor:
    """Return the weight of each positive pair, (N,), without gradients. The mean over all ranks is 1.

    Lightly's function does not gather, and warns about a copy.

    Args:
        anchor: Embeddings of unit length, (N, D).
        positive: Embeddings of unit length, (N, D).
        sigma: Width of the weights.
    """
    agreement = (full_precision(anchor) * full_precision(positive)).detach().sum(1, keepdim=True) / sigma
    every = gathered(agreement)
    return (2 - len(every) * (agreement - every.logsumexp(0)).exp()).squeeze(1)
