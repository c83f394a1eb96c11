"""SimCLR."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.options import Count, NonNegative, Positive, Share
from idaa_lightly.plugin import PairMethod


class SimCLR(PairMethod):
    """SimCLR with the recipe of IDAA's authors for small images.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020. The recipe
    is that of Yang et al., ICML 2022, appendix on training (CIFAR): Adam, a cosine schedule after epoch 10, 300 epochs,
    batch size 256, a projection head 512-512-64 without BatchNorm, and no blur.

    Args:
        temperature: Temperature of NT-Xent, which divides the cosines.
        lr: Learning rate of Adam.
        projection_dim: Dimension of the projection.
        hidden_dim: Width of the projection head. None takes the dimension of the features.
        head_batchnorm: Put BatchNorm layers into the projection head, as SimCLR's authors do.
        weight_decay: Decoupled weight decay (AdamW). The paper has none.
        schedule: Schedule of the learning rate. "idaa" is the paper's: constant for 10 epochs, then a cosine that
            does not reach 0. "warmup" rises linearly over the first tenth of the steps and falls to 0 along a cosine.
            "constant" does not depend on the number of epochs, so `--resume` can lengthen a run.
        min_scale: Smallest area of a random crop, as a share of the image. Small networks prefer weaker crops.
        jitter: Strength of the colour jitter, a factor on (0.8, 0.8, 0.8, 0.2). Above 2.5 the hue would
            leave its range.
    """

    epochs = 300
    batch_size = 256

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.5,
        lr: NonNegative = 3e-4,
        projection_dim: Count = 64,
        hidden_dim: Count | None = None,
        head_batchnorm: bool = False,
        weight_decay: NonNegative = 0.0,
        schedule: Literal["idaa", "warmup", "constant"] = "idaa",
        min_scale: Share = 0.08,
        jitter: Annotated[float, Interval(ge=0, le=2.5)] = 1.0,
    ) -> None:
        super().__init__(backbone, num_features)
        hidden_dim = hidden_dim or num_features
        self.head = SimCLRProjectionHead(num_features, hidden_dim, projection_dim, batch_norm=head_batchnorm)
        self.criterion = NTXentLoss(temperature, gather_distributed=True)
        self.lr, self.weight_decay, self.schedule = lr, weight_decay, schedule
        self.min_scale, self.jitter = min_scale, jitter

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter and greyscale."""
        return SimCLRTransform(
            image_size, cj_strength=self.jitter, gaussian_blur=0.0, min_scale=self.min_scale, normalize=normalize
        )

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return AdamW with a schedule. Without weight decay, AdamW is Adam."""
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        steps = epochs * steps_per_epoch
        if self.schedule == "warmup":
            return optimizer, CosineWarmupScheduler(optimizer, max(1, steps // 10), max(2, steps), end_value=0.0)
        if self.schedule == "constant":
            return optimizer, ConstantLR(optimizer, factor=1.0)

        def factor(step: int) -> float:
            return 0.5 * (1 + math.cos(math.pi * max(0, step // steps_per_epoch - 10) / epochs))

        return optimizer, LambdaLR(optimizer, factor)
