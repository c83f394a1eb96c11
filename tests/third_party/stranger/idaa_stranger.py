"""Example of a third-party plugin: an augmentation and a method, which use public names only."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss import BarlowTwinsLoss
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import nn

from idaa_lightly import PGD, PixelSpace, ViewGenerator
from idaa_lightly.plugin import GeneratorAugmentation, Method


class Nudge(GeneratorAugmentation):
    """Some projected gradient steps on the pixels.

    Args:
        eps: Radius of the L∞ ball, in normalised pixel units.
        steps: Number of gradient steps.
    """

    def __init__(self, *, eps: float = 0.02, steps: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.ascent = PGD(eps, steps=steps)

    def generator(self) -> ViewGenerator:
        return ViewGenerator(PixelSpace(), self.ascent)


class Barlow(Method):
    """Barlow Twins with a linear head.

    Args:
        dim: Dimension of the embedding.
    """

    def __init__(self, backbone: nn.Module, num_features: int, *, dim: int = 32) -> None:
        super().__init__(backbone, num_features)
        self.head, self.criterion = nn.Linear(num_features, dim), BarlowTwinsLoss()

    def transform(self, image_size, normalize):
        return SimCLRTransform(image_size, gaussian_blur=0.0, normalize=normalize)

    def embed(self, images):
        return self.head(self.backbone(images))

    def loss(self, anchor, positive, *others):
        return self.criterion(anchor, positive)

    def optimizer(self, parameters, epochs, steps_per_epoch):
        optimizer = torch.optim.SGD(parameters, lr=0.03)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps_per_epoch)
