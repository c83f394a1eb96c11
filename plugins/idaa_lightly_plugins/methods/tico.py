"""TiCo."""

from __future__ import annotations

import torch
from lightly.loss import TiCoLoss
from lightly.models.modules.heads import TiCoProjectionHead
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.distributed import gathered
from idaa_lightly.options import Count, Fraction, NonNegative
from idaa_lightly_plugins.methods.recipe import BYOLViews, MomentumRecipe

Pair = tuple[Tensor, Tensor]


class TiCo(BYOLViews, MomentumRecipe):
    """Transformation invariance and covariance contrast (TiCo), with a momentum network.

    Projections are pulled to those of the momentum network, and pushed out of the directions in which the covariance of
    past projections is large. An attack that starts at the anchor gets its gradient from the second term. Only clean
    views enter the covariance.

    Source: Zhu et al., "TiCo: Transformation Invariance and Covariance Contrast for Self-Supervised Visual
    Representation Learning", 2022, arXiv 2206.10698. The recipe is Lightly's Imagenette benchmark (docs,
    imagenette_benchmark.py), because its CIFAR-10 benchmark has no TiCo: SGD, warm-up for a tenth of the epochs,
    batches of 256 images and BYOL's views, here without blur.

    Args:
        rho: Weight of the covariance term.
        beta: Momentum of the covariance.
        lr: Learning rate of SGD. The default is for batches of 256 images, and is scaled for others.
        momentum: Momentum of the momentum network at the first step. It rises to 1.
        hidden_dim: Width of the projection head.
        projection_dim: Dimension of the projection.
    """

    batch_size = 256
    weight_decay = 1e-4
    rising = True

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        rho: NonNegative = 8.0,
        beta: Fraction = 0.9,
        lr: NonNegative = 0.3,
        momentum: Fraction = 0.996,
        hidden_dim: Count = 1024,
        projection_dim: Count = 256,
    ) -> None:
        head = TiCoProjectionHead(num_features, hidden_dim, projection_dim)
        super().__init__(backbone, num_features, head, lr=lr, momentum=momentum)
        self.criterion = TiCoLoss(beta, rho)
        del self.criterion.C  # Lightly's attribute would be missing in checkpoints.
        self.criterion.register_buffer("C", torch.zeros(projection_dim, projection_dim))

    def embed(self, images: Tensor) -> Pair:
        """Return projections of the trained and of the momentum network, (N, projection_dim) each."""
        return self.project(images), self.project_by_momentum(images)

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Compare the positive's projection with the anchor's projection by the momentum network, over all ranks."""
        loss: Tensor = self.criterion(gathered(positive[0]), gathered(anchor[1]))
        return loss

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return SGD with a cosine schedule after warm-up."""
        optimizer, _ = super().optimizer(parameters, epochs, steps_per_epoch)
        steps = epochs * steps_per_epoch
        return optimizer, CosineWarmupScheduler(optimizer, steps // 10, steps)
