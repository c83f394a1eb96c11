"""Debiased contrastive learning."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from lightly.models.modules.heads import ProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.criteria import DebiasedLoss
from idaa_lightly.options import BelowOne, Count, NonNegative, Positive
from idaa_lightly_plugins.methods.simclr import SimCLR


class Debiased(SimCLR):
    """Debiased contrastive learning: SimCLR with a correction for negatives of the anchor's own class.

    Source and recipe: Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020, Sec. 5 and the appendix. The recipe
    is Adam, learning rate 1e-3, weight decay 1e-6, 400 epochs, batch size 256, ResNet-50 and a projection head of
    widths 512 and 128 with BatchNorm.

    Args:
        temperature: Temperature of the loss, which divides the cosines.
        tau_plus: Probability that a negative has the anchor's class.
        lr: Learning rate of Adam.
        projection_dim: Dimension of the projection.
        jitter: Strength of the colour jitter, a factor on (0.4, 0.4, 0.4, 0.1).
    """

    epochs = 400
    criterion: DebiasedLoss

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.5,
        tau_plus: BelowOne = 0.1,
        lr: NonNegative = 1e-3,
        projection_dim: Count = 128,
        jitter: Annotated[float, Interval(ge=0, le=2.5)] = 1.0,
    ) -> None:
        super().__init__(backbone, num_features, lr=lr, projection_dim=projection_dim, jitter=jitter)
        blocks = [(num_features, 512, nn.BatchNorm1d(512), nn.ReLU()), (512, projection_dim, None, None)]
        self.head = ProjectionHead(blocks)
        self.criterion = DebiasedLoss(temperature, tau_plus, gather_distributed=True)

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter and greyscale."""
        return SimCLRTransform(
            image_size, cj_strength=0.5 * self.jitter, gaussian_blur=0.0, min_scale=0.08, normalize=normalize
        )

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return Adam with a constant learning rate."""
        optimizer = torch.optim.Adam(parameters, lr=self.lr, weight_decay=1e-6)
        return optimizer, ConstantLR(optimizer, factor=1.0)
