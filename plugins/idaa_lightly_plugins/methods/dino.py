"""DINO."""

from __future__ import annotations

import warnings
from typing import Any

from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.transforms.dino_transform import DINOTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from idaa_lightly.options import Count, NonNegativeInt
from idaa_lightly_plugins.methods.recipe import MomentumRecipe, local_size

Outputs = tuple[Tensor, ...]


class DINO(MomentumRecipe):
    """Self-distillation without labels (DINO): a student predicts a centred momentum teacher, with multi-crop.

    Attacks get their gradient through the student, and do not change teacher and centre. The teacher also processes the
    local views, although its outputs for them are unused. This takes about a tenth of the time of a step.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, Sec. 3. The recipe is
    Lightly's CIFAR-10 benchmark, which has no temperature schedule. The local views and the projection head of three
    layers are the paper's. Lightly's benchmark has no local views, and a head of two layers.

    Args:
        hidden_dim: Width of the projection head.
        bottleneck_dim: Dimension of the head's bottleneck, before its last layer.
        projection_dim: Number of outputs of the head.
        local_views: Number of smaller views per image, in addition to the two global views.
    """

    multi_crop = True

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        hidden_dim: Count = 2048,
        bottleneck_dim: Count = 256,
        projection_dim: Count = 2048,
        local_views: NonNegativeInt = 6,
        **options: Any,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its weight_norm cannot be deep-copied; replaced below
            head = DINOProjectionHead(num_features, hidden_dim, bottleneck_dim, projection_dim, batch_norm=True)
        head.last_layer = weight_norm(nn.Linear(bottleneck_dim, projection_dim, bias=False))
        length = head.last_layer.parametrizations.weight.original0
        length.data.fill_(1)
        length.requires_grad_(False)
        super().__init__(backbone, num_features, head, **options)
        self.criterion = DINOLoss(projection_dim)
        self.local_views = local_views

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform of global and local crops, with flip, colour jitter, greyscale and solarisation."""
        return DINOTransform(
            global_crop_size=image_size,
            local_crop_size=local_size(image_size),
            n_local_views=self.local_views,
            gaussian_blur=(0.0, 0.0, 0.0),
            normalize=normalize,
        )

    def embed(self, images: Tensor) -> Outputs:
        """Return outputs of student and teacher, (N, projection_dim) each."""
        return self.project(images), self.project_by_momentum(images)

    def loss(self, anchor: Outputs, positive: Outputs, *others: Outputs) -> Tensor:
        """Compute the cross-entropy of student outputs for all views with teacher outputs for the two global views."""
        views = (anchor, positive, *others)
        loss: Tensor = self.criterion([anchor[1], positive[1]], [view[0] for view in views])
        return loss
