"""What several methods share: the recipe of Lightly's CIFAR-10 benchmark, and a momentum network."""

from __future__ import annotations

import copy
import math

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.options import Fraction, NonNegative
from idaa_lightly.plugin import Method


class LightlyRecipe(Method):
    """SGD with momentum and a cosine, SimCLR's views without blur.

    Source: Lightly's CIFAR-10 benchmark (docs, cifar10_benchmark.py): ResNet-18, 200 epochs, batch 512, momentum 0.9,
    weight decay 5e-4, learning rate 0.06 for every 128 images of a batch.

    Args:
        lr: learning rate of SGD.
    """

    epochs = 200
    batch_size = 512
    head: nn.Module

    def __init__(self, backbone: nn.Module, num_features: int, *, lr: NonNegative = 0.24) -> None:
        super().__init__(backbone, num_features)
        self.lr = lr

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Crop, flip, colour jitter, greyscale."""
        return SimCLRTransform(image_size, cj_strength=0.5, gaussian_blur=0.0, normalize=normalize)

    def project(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to projections (N, D)."""
        projection: Tensor = self.head(self.backbone(images).flatten(1))
        return projection

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """SGD with a cosine over all steps."""
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=5e-4)
        return optimizer, cosine(optimizer, epochs * steps_per_epoch)


class MomentumRecipe(LightlyRecipe):
    """Adds copies of backbone and head that follow them slowly.

    Args:
        momentum: of the copies.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        head: nn.Module,
        *,
        lr: NonNegative = 0.24,
        momentum: Fraction = 0.99,
    ) -> None:
        super().__init__(backbone, num_features, lr=lr)
        self.head, self.momentum = head, momentum
        self.momentum_backbone, self.momentum_head = copy.deepcopy(backbone), copy.deepcopy(head)
        deactivate_requires_grad(self.momentum_backbone)
        deactivate_requires_grad(self.momentum_head)

    @torch.no_grad()
    def project_by_momentum(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to projections (N, D) by the copies."""
        projection: Tensor = self.momentum_head(self.momentum_backbone(images).flatten(1))
        return projection

    def before_step(self, step: int, epochs: int, steps_per_epoch: int) -> None:
        """Lets the copies follow."""
        update_momentum(self.backbone, self.momentum_backbone, self.momentum)
        update_momentum(self.head, self.momentum_head, self.momentum)


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """From the full learning rate to 0 in half a cosine."""
    return LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps)))


def keep_in_checkpoints(bank: nn.Module) -> None:
    """Makes the buffers of a memory bank persistent; Lightly leaves them out, and a resumed run would start anew."""
    for name, buffer in list(bank.named_buffers(recurse=False)):
        bank.register_buffer(name, buffer, persistent=True)


def local_size(image_size: int) -> int:
    """Size of local crops: 96 at 224 px, as in the papers of SwAV and DINO, and in that proportion, from 8 px on."""
    return max(8, round(image_size * 96 / 224))
