"""BYOL."""

from __future__ import annotations

from typing import Any

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor, nn

from idaa_lightly.options import Count
from idaa_lightly_plugins.methods.recipe import MomentumRecipe

Pair = tuple[Tensor, Tensor]


class BYOL(MomentumRecipe):
    """Bootstrap your own latent: a predictor, and a target network that follows slowly.

    An attack finds its direction through the predictor: between an image and itself, the prediction and the target
    differ.

    Source: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, Sec. 3; recipe of Lightly's CIFAR-10 benchmark.

    Args:
        hidden_dim: width of projection head and predictor.
        projection_dim: dimension of the projection.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        hidden_dim: Count = 1024,
        projection_dim: Count = 256,
        **options: Any,
    ) -> None:
        head = BYOLProjectionHead(num_features, hidden_dim, projection_dim)
        super().__init__(backbone, num_features, head, **options)
        self.predictor = BYOLPredictionHead(projection_dim, hidden_dim, projection_dim)
        self.criterion = NegativeCosineSimilarity()

    def embed(self, images: Tensor) -> Pair:
        """Predictions, and targets of the momentum network (N, projection_dim)."""
        return self.predictor(self.project(images)), self.project_by_momentum(images)

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Negative cosine of each prediction with the other's target."""
        loss: Tensor = 0.5 * (self.criterion(anchor[0], positive[1]) + self.criterion(positive[0], anchor[1]))
        return loss
