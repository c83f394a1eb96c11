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
    """One-way InfoNCE on a linear embedding, by default of 128 dimensions.

    Source and recipe: Ho & Vasconcelos, NeurIPS 2020, Sec. 4 ("Plain"), as used by Yang et al., ICML 2022. The recipe
    is SGD with momentum 0.9, weight decay 5e-4 and batch size 128. The learning rate is multiplied by 1, 0.1, 0.05 and
    0.01 from epochs 0, 120, 160 and 200 of 240. Crops have a scale of 0.2 to 1, and the colour jitter is 0.4.

    Args:
        temperature: Temperature of the loss, which divides the cosines.
        lr: Initial learning rate. With another number of epochs, the drops are moved in proportion.
        projection_dim: Dimension of the embedding.
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
        self.criterion = self.criterion_class(temperature, gather_distributed=True)
        self.lr = lr

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter and greyscale."""
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
        """Return SGD with three drops of the learning rate."""
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=5e-4)
        drops = [epochs * epoch // self.epochs * steps_per_epoch for epoch in (120, 160, 200)]
        return optimizer, LambdaLR(optimizer, lambda step: (1.0, 0.1, 0.05, 0.01)[bisect_right(drops, step)])
