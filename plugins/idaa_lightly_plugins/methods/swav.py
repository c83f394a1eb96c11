"""SwAV."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.swav_transform import SwaVTransform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.options import Count, NonNegative, NonNegativeInt
from idaa_lightly_plugins.methods.recipe import LightlyRecipe, cosine, full_precision, local_size


class SwaV(LightlyRecipe):
    """Swapped prediction of cluster assignments (SwAV), with multi-crop.

    An attack raises the cross-entropy between the anchor's codes, which are held fixed, and the view's scores.
    Prototypes are normalised once before each step, and get no gradient from an attack.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
    Sec. 3. The recipe is Lightly's CIFAR-10 benchmark: Adam, learning rate 1e-3 per 128 images of a batch, weight decay
    1e-6, 512 prototypes and no queue. Local views are as in the paper, while Lightly's benchmark has none.

    Args:
        lr: Learning rate of Adam. The default is for batches of 512 images, and is scaled for others.
        projection_dim: Dimension of the projection.
        prototypes: Number of prototypes.
        local_views: Number of smaller views per image, in addition to the two global views.
    """

    multi_crop = True

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        lr: NonNegative = 4e-3,
        projection_dim: Count = 128,
        prototypes: Count = 512,
        local_views: NonNegativeInt = 6,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, lr=lr, **options)
        self.head = SwaVProjectionHead(num_features, num_features, projection_dim)
        self.prototypes = SwaVPrototypes(projection_dim, prototypes)
        self.criterion = SwaVLoss(sinkhorn_gather_distributed=True)
        self.local_views = local_views

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform of global and local crops, with flip, colour jitter and greyscale."""
        return SwaVTransform(
            crop_sizes=(image_size, local_size(image_size)),
            crop_counts=(2, self.local_views),
            cj_strength=0.5,
            gaussian_blur=0.0,
            normalize=normalize,
        )

    def embed(self, images: Tensor) -> Tensor:
        """Compute the scores (N, prototypes) of images (N, C, H, W)."""
        scores: Tensor = self.prototypes(F.normalize(self.project(images), dim=1))
        return full_precision(scores)  # The codes exceed the range of float16.

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Compute the cross-entropy of the codes of each global view with the scores of all other views."""
        loss: Tensor = self.criterion([anchor, positive], list(others)).squeeze()
        return loss

    def before_step(self, step: int, epochs: int, steps_per_epoch: int) -> None:
        """Normalise the prototypes to unit length."""
        self.prototypes.normalize()

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return Adam with a cosine schedule over all steps."""
        optimizer = torch.optim.Adam(parameters, lr=self.lr, weight_decay=1e-6)
        return optimizer, cosine(optimizer, epochs * steps_per_epoch)
