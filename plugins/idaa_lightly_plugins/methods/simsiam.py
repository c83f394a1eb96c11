"""SimSiam."""

from __future__ import annotations

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead
from lightly.models.modules.heads import ProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import Tensor, nn

from idaa_lightly.options import Count, NonNegative
from idaa_lightly_plugins.methods.recipe import LightlyRecipe

Pair = tuple[Tensor, Tensor]


class SimSiam(LightlyRecipe):
    """SimSiam, which has a predictor and a stopped gradient, but no negatives.

    An attack that starts at the anchor has a non-zero gradient, since the predictor makes prediction and projection
    differ even for the same image.

    Source and recipe: Chen & He, "Exploring Simple Siamese Representation Learning", CVPR 2021, Sec. 3 and App. D
    (CIFAR). The recipe is SGD with momentum 0.9, weight decay 5e-4, a cosine schedule, batch size 512, a projection
    head of two layers and no blur. The 300 epochs are those of Yang et al., ICML 2022.

    Args:
        lr: Learning rate of SGD, 0.03 per 256 images of a batch. The default is for batches of 512 images, and is
            scaled for others.
        projection_dim: Dimension of the projection.
        prediction_dim: Width of the predictor's bottleneck.
    """

    epochs = 300
    batch_size = 512

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        lr: NonNegative = 0.06,
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
        """Return a transform with crop, flip, colour jitter and greyscale."""
        return SimCLRTransform(image_size, cj_strength=0.5, gaussian_blur=0.0, min_scale=0.2, normalize=normalize)

    def embed(self, images: Tensor) -> Pair:
        """Return predictions and detached projections, (N, projection_dim) each."""
        projection = self.project(images)
        return self.predictor(projection), projection.detach()

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Compute the negative cosine of each prediction and the other view's projection."""
        loss: Tensor = 0.5 * (self.criterion(anchor[0], positive[1]) + self.criterion(positive[0], anchor[1]))
        return loss
