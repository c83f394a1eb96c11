"""VICReg."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.vicreg_transform import VICRegTransform
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.options import Count, NonNegative
from idaa_lightly.plugin import PairMethod


class VICReg(PairMethod):
    """VICReg, whose loss has terms for variance, invariance and covariance of projections.

    Source: Bardes et al., "VICReg", ICLR 2022, Sec. 4 (weights 25, 25 and 1). The recipe is solo-learn's for CIFAR-10:
    LARS, learning rate 0.3, 10 epochs of warm-up, a cosine schedule, 1000 epochs and batch size 256. Weight decay is
    1e-4, and 0 for biases and norms. The projection head has three layers of width 2048. Views have no blur.

    Differs from solo-learn: LARS is Lightly's, with a trust coefficient of 0.02 and without clipping. A step on weights
    w with gradient g has the rate lr · 0.02 · ‖w‖ / ‖g‖. Solo-learn's has 0.02 · ‖w‖ / ‖g‖, at most lr. The variance
    term is half of solo-learn's, as in the paper.

    Args:
        lr: Learning rate of LARS.
        projection_dim: Width of the projection head and dimension of the projection.
    """

    epochs = 1000
    batch_size = 256

    def __init__(
        self, backbone: nn.Module, num_features: int, *, lr: NonNegative = 0.3, projection_dim: Count = 2048
    ) -> None:
        super().__init__(backbone, num_features)
        self.head = BarlowTwinsProjectionHead(num_features, projection_dim, projection_dim)
        self.criterion = VICRegLoss(gather_distributed=True)
        self.lr = lr

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter, greyscale and solarisation."""
        return VICRegTransform(image_size, min_scale=0.2, gaussian_blur=0.0, normalize=normalize)

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return LARS with a cosine schedule after warm-up.

        The warm-up takes 10 epochs, or a tenth of a training of less than 100 epochs.
        """
        groups: list[dict[str, Any]] = [part if isinstance(part, dict) else {"params": [part]} for part in parameters]
        split = [
            group | {"params": [p for p in params if (p.ndim > 1) is decayed], "weight_decay": 1e-4 * decayed}
            for group, params in ((group, list(group["params"])) for group in groups)
            for decayed in (True, False)
        ]
        optimizer = LARS(
            [group for group in split if group["params"]], lr=self.lr, momentum=0.9, trust_coefficient=0.02
        )
        warmup = min(10, epochs // 10) * steps_per_epoch
        return optimizer, CosineWarmupScheduler(optimizer, warmup, epochs * steps_per_epoch)
