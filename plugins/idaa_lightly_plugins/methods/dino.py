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

Pair = tuple[Tensor, Tensor]


class DINO(MomentumRecipe):
    """Self-distillation without labels, with multi-crop: a student predicts a centred momentum teacher.

    The gradient of an attack comes through the student; teacher and centre stay as they are. The teacher sees the
    local views too, for nothing: about a tenth of a step.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, Sec. 3; recipe of
    Lightly's CIFAR-10 benchmark, which has no schedule of the temperature. Local views as in the paper; Lightly's
    benchmark has none.

    Args:
        hidden_dim: width of the head.
        bottleneck_dim: of the head, before its last layer.
        projection_dim: number of outputs.
        local_views: smaller views of an image, besides the two global ones.
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
            warnings.simplefilter("ignore", FutureWarning)  # Lightly's weight_norm, which cannot be copied
            head = DINOProjectionHead(num_features, hidden_dim, bottleneck_dim, projection_dim, batch_norm=True)
        head.last_layer = weight_norm(nn.Linear(bottleneck_dim, projection_dim, bias=False))
        length = head.last_layer.parametrizations.weight.original0
        length.data.fill_(1)
        length.requires_grad_(False)
        super().__init__(backbone, num_features, head, **options)
        self.criterion = DINOLoss(projection_dim)
        self.local_views = local_views

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Two global crops and the local ones: crop, flip, colour jitter, greyscale, solarisation."""
        return DINOTransform(
            global_crop_size=image_size,
            local_crop_size=local_size(image_size),
            n_local_views=self.local_views,
            gaussian_blur=(0.0, 0.0, 0.0),
            normalize=normalize,
        )

    def embed(self, images: Tensor) -> Pair:
        """Outputs of student and teacher (N, projection_dim)."""
        return self.project(images), self.project_by_momentum(images)

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Cross-entropy of all students with the teachers of the two global views."""
        views = (anchor, positive, *others)
        loss: Tensor = self.criterion([anchor[1], positive[1]], [student for student, _ in views])
        return loss
