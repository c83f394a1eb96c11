"""BYOL."""

from __future__ import annotations

from typing import Any

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor, nn

from idaa_lightly.options import Count
from idaa_lightly_plugins.methods.recipe import BYOLViews, MomentumRecipe

Pair = tuple[Tensor, Tensor]


class BYOL(BYOLViews, MomentumRecipe):
    """Bootstrap your own latent (BYOL): a predictor and a momentum target network.

    An attack that starts at the anchor has a non-zero gradient, since the predictor makes prediction and target differ
    even for the same image.

    Source: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, Sec. 3. The recipe is Lightly's CIFAR-10 benchmark,
    with BYOL's views.

    Args:
        hidden_dim: Width of the projection head and the predictor.
        projection_dim: Dimension of the projection.
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
        """Return predictions and targets of the momentum network, (N, projection_dim) each."""
        return self.predictor(self.project(images)), self.project_by_momentum(images)

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Compute the negative cosine of each prediction and the other view's target."""
        loss: Tensor = 0.5 * (self.criterion(anchor[0], positive[1]) + self.criterion(positive[0], anchor[1]))
        return loss
