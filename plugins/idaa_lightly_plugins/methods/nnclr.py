"""NNCLR."""

from __future__ import annotations

from typing import Any

from lightly.loss import NTXentLoss
from lightly.models.modules import NNCLRPredictionHead, NNMemoryBankModule
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from idaa_lightly.options import Count, Positive
from idaa_lightly_plugins.methods.recipe import LightlyRecipe, keep_in_checkpoints

Pair = tuple[Tensor, Tensor]


class NNCLR(LightlyRecipe):
    """Nearest-neighbour contrastive learning (NNCLR): positives are nearest neighbours in a memory bank.

    Attacks get their gradient through the view's prediction. Only clean views enter the memory bank.

    Source: Dwibedi et al., "With a Little Help from My Friends", ICCV 2021, Sec. 3. The recipe is Lightly's CIFAR-10
    benchmark, with its projection head of two layers.

    Args:
        temperature: Temperature of the loss, which divides the cosines.
        hidden_dim: Width of the projection head. The predictor is twice as wide.
        projection_dim: Dimension of the projection.
        bank: Number of projections in the memory bank.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.5,
        hidden_dim: Count = 2048,
        projection_dim: Count = 256,
        bank: Count = 8192,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, **options)
        norms = nn.BatchNorm1d(hidden_dim), nn.BatchNorm1d(projection_dim)
        self.head = ProjectionHead(
            [(num_features, hidden_dim, norms[0], nn.ReLU()), (hidden_dim, projection_dim, norms[1], None)]
        )
        self.predictor = NNCLRPredictionHead(projection_dim, 2 * hidden_dim, projection_dim)
        self.criterion = NTXentLoss(temperature, gather_distributed=True)
        self.bank = NNMemoryBankModule((bank, projection_dim))
        self.bank.gather_distributed = True  # no argument of the constructor
        keep_in_checkpoints(self.bank)

    def embed(self, images: Tensor) -> Pair:
        """Return predictions and detached projections, (N, projection_dim) each."""
        projection = self.project(images)
        return self.predictor(projection), projection.detach()

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Contrast each prediction with the nearest neighbour of the other view's projection."""
        neighbours = self.bank(anchor[1]), self.bank(positive[1], update=True)
        loss: Tensor = 0.5 * (self.criterion(neighbours[0], positive[0]) + self.criterion(neighbours[1], anchor[0]))
        return loss
