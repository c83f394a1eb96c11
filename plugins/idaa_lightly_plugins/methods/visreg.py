"""VISReg."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge
from lightly.loss.visreg_loss import visreg_center_loss, visreg_scale_loss, visreg_shape_loss
from lightly.models.modules.heads import ProjectionHead
from lightly.transforms.dino_transform import DINOViewTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn

from idaa_lightly.options import Count, Fraction, NonNegative, NonNegativeInt
from idaa_lightly_plugins.methods.lejepa import LeJEPA
from idaa_lightly_plugins.methods.recipe import local_size


class VISReg(LeJEPA):
    """VISReg: LeJEPA with three terms instead of SIGReg, for the mean, the variance and the shape of projections.

    The third term compares the projections in random directions with the quantiles of a normal distribution.

    Source: Wu et al., "VISReg", 2026, arXiv 2606.02572. The recipe is Lightly's ImageNet benchmark
    (benchmarks/imagenet/vitb16/visreg.py), because its CIFAR-10 benchmark has no VISReg: AdamW, one epoch of warm-up,
    100 epochs, a projection head of three layers with GELU, and four global and six local views, here without blur. λ =
    0.6 is the paper's advice for small data sets; Lightly has 0.9, the paper's value for large ones. The batch size and
    the weight decay are those of `lejepa`.

    Differs from Lightly: BatchNorm statistics are computed per view, not over all global or all local views.

    Args:
        regularisation: Weight λ of the three terms. The invariance term has the weight 1 − λ.
        slices: Number of random directions. They are drawn anew at each step.
        lr: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW. For vision transformers, Lightly has 0.05.
        hidden_dim: Width of the projection head.
        projection_dim: Dimension of the projection.
        global_views: Number of views per image at full size, at least two.
        local_views: Number of smaller views per image, in addition to the global ones.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        regularisation: Fraction = 0.6,
        slices: Count = 2048,
        lr: NonNegative = 9e-4,
        weight_decay: NonNegative = 5e-4,
        hidden_dim: Count = 2048,
        projection_dim: Count = 256,
        global_views: Annotated[int, Ge(2)] = 4,
        local_views: NonNegativeInt = 6,
    ) -> None:
        super().__init__(
            backbone,
            num_features,
            regularisation=regularisation,
            lr=lr,
            weight_decay=weight_decay,
            local_views=local_views,
        )
        self.head = ProjectionHead(
            [
                (num_features, hidden_dim, nn.BatchNorm1d(hidden_dim), nn.GELU()),
                (hidden_dim, hidden_dim, nn.BatchNorm1d(hidden_dim), nn.GELU()),
                (hidden_dim, projection_dim, None, None),
            ]
        )
        self.criterion = _Regularisation(slices)
        self.global_views = global_views

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform of global and local crops, with flip, colour jitter, greyscale and solarisation."""
        options: dict[str, Any] = {"gaussian_blur": 0.0, "solarization_prob": 0.2, "normalize": normalize}
        whole = DINOViewTransform(image_size, (0.3, 1.0), **options)
        local = DINOViewTransform(local_size(image_size), (0.05, 0.3), **options)
        return MultiViewTransform([whole] * self.global_views + [local] * self.local_views)


class _Regularisation(nn.Module):
    """Sum of the terms for mean, variance and shape, on projections (V, N, D) of V views."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.slices = slices

    def forward(self, views: Tensor) -> Tensor:
        total: Tensor = visreg_center_loss(views) + visreg_scale_loss(views) + visreg_shape_loss(views, self.slices)
        return total
