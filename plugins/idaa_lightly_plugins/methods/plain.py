"""Plain: one-way InfoNCE on a linear embedding."""

from __future__ import annotations

from bisect import bisect_right

import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.criteria import InfoNCELoss
from idaa_lightly.options import Count, NonNegative, Positive
from idaa_lightly.plugin import PairMethod


class Plain(PairMethod):
    """One-way InfoNCE on a linear embedding of 128 dimensions.

    Source and recipe: Ho & Vasconcelos, NeurIPS 2020, Sec. 4 ("Plain"), as used by Yang et al., ICML 2022: SGD with
    momentum 0.9 and weight decay 5e-4, learning rate × (1, 0.1, 0.05, 0.01) from epochs 0, 120, 160 and 200, batch
    128, crops of 0.2 to 1, jitter 0.4.

    Args:
        temperature: scales the cosines.
        lr: learning rate of the first 120 of 240 epochs; of other lengths, in proportion.
        projection_dim: dimension of the embedding.
    """

    epochs = 240
    batch_size = 128
    criterion_class: type[nn.Module] = InfoNCELoss

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.1,
        lr: NonNegative = 0.03,
        projection_dim: Count = 128,
    ) -> None:
        super().__init__(backbone, num_features)
        self.head = nn.Linear(num_features, projection_dim)
        self.criterion = self.criterion_class(temperature)
        self.lr = lr

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Crop, jitter, greyscale, flip."""
        return SimCLRTransform(
            image_size,
            cj_prob=1.0,
            cj_bright=0.4,
            cj_contrast=0.4,
            cj_sat=0.4,
            cj_hue=0.4,
            min_scale=0.2,
            gaussian_blur=0.0,
            normalize=normalize,
        )

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """SGD with three drops."""
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=5e-4)
        drops = [epochs * epoch // self.epochs * steps_per_epoch for epoch in (120, 160, 200)]
        return optimizer, LambdaLR(optimizer, lambda step: (1.0, 0.1, 0.05, 0.01)[bisect_right(drops, step)])
