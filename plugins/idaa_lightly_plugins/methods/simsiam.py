"""SimSiam."""

from __future__ import annotations

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead
from lightly.models.modules.heads import ProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import Tensor, nn

from idaa_lightly.options import Count
from idaa_lightly_plugins.methods.recipe import LightlyRecipe

Pair = tuple[Tensor, Tensor]


class SimSiam(LightlyRecipe):
    """SimSiam: no negatives, a predictor and a stopped gradient.

    An attack finds its direction through the predictor: between an image and itself, the prediction and the
    projection differ.

    Source and recipe: Chen & He, "Exploring Simple Siamese Representation Learning", CVPR 2021, Sec. 3 and App. D
    (CIFAR): SGD with momentum 0.9, weight decay 5e-4, cosine, batch 512, a projection head of two layers, no blur; 300
    epochs as in Yang et al., ICML 2022.

    Args:
        lr: learning rate, 0.03 for every 256 images of a batch.
        projection_dim: dimension of the projection.
        prediction_dim: width of the predictor's bottleneck.
    """

    epochs = 300
    batch_size = 512

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        lr: float = 0.06,
        projection_dim: Count = 2048,
        prediction_dim: Count = 512,
    ) -> None:
        super().__init__(backbone, num_features, lr=lr)
        hidden, out = nn.BatchNorm1d(projection_dim), nn.BatchNorm1d(projection_dim, affine=False)
        self.head = ProjectionHead(
            [(num_features, projection_dim, hidden, nn.ReLU()), (projection_dim, projection_dim, out, None)]
        )
        self.predictor = SimSiamPredictionHead(projection_dim, prediction_dim, projection_dim)
        self.criterion = NegativeCosineSimilarity()

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Crop, flip, colour jitter, greyscale."""
        return SimCLRTransform(image_size, cj_strength=0.5, gaussian_blur=0.0, min_scale=0.2, normalize=normalize)

    def embed(self, images: Tensor) -> Pair:
        """Predictions and projections (N, projection_dim), the projections outside the graph."""
        projection = self.project(images)
        return self.predictor(projection), projection.detach()

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Negative cosine of each prediction with the other's projection."""
        loss: Tensor = 0.5 * (self.criterion(anchor[0], positive[1]) + self.criterion(positive[0], anchor[1]))
        return loss
