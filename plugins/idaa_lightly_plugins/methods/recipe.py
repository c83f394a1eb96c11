"""Code that several methods share: the recipe of Lightly's CIFAR-10 benchmark, and a momentum network."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.options import Fraction, NonNegative
from idaa_lightly.plugin import Method


class LightlyRecipe(Method):
    """Base class of methods with the recipe of Lightly's CIFAR-10 benchmark.

    The recipe is SGD with momentum 0.9, weight decay 5e-4 and a cosine schedule, and SimCLR's views without blur.

    Source: Lightly's CIFAR-10 benchmark (docs, cifar10_benchmark.py): ResNet-18, 200 epochs, batch size 512, learning
    rate 0.06 per 128 images of a batch.

    Args:
        lr: Learning rate of SGD. The default is for batches of 512 images, and is scaled for others.
    """

    epochs = 200
    batch_size = 512
    scales_lr = True
    weight_decay: ClassVar[float] = 5e-4
    head: nn.Module

    def __init__(self, backbone: nn.Module, num_features: int, *, lr: NonNegative = 0.24) -> None:
        super().__init__(backbone, num_features)
        self.lr = lr

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter and greyscale."""
        return SimCLRTransform(image_size, cj_strength=0.5, gaussian_blur=0.0, normalize=normalize)

    def project(self, images: Tensor) -> Tensor:
        """Compute projections (N, D) of images (N, C, H, W)."""
        projection: Tensor = self.head(self.backbone(images).flatten(1))
        return projection

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return SGD with a cosine schedule over all steps."""
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        return optimizer, cosine(optimizer, epochs * steps_per_epoch)


class MomentumRecipe(LightlyRecipe):
    """LightlyRecipe with a momentum network: moving averages of backbone and head.

    Args:
        momentum: Momentum of the moving averages.
    """

    rising: ClassVar[bool] = False
    """Set to True if the momentum rises to 1 along a cosine."""

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
        """Compute projections (N, D) of images (N, C, H, W) with the momentum network, without gradient."""
        projection: Tensor = self.momentum_head(self.momentum_backbone(images).flatten(1))
        return projection

    def before_step(self, step: int, epochs: int, steps_per_epoch: int) -> None:
        """Update the momentum network."""
        steps = epochs * steps_per_epoch
        self.follow(cosine_schedule(step, steps, self.momentum, 1.0) if self.rising else self.momentum)

    def follow(self, momentum: float) -> None:
        """Move the momentum network towards the trained one.

        Args:
            momentum: Weight of the old parameters. 0 copies the trained network.
        """
        update_momentum(self.backbone, self.momentum_backbone, momentum)
        update_momentum(self.head, self.momentum_head, momentum)


class BYOLViews(Method):
    """Base class of methods with BYOL's views, without blur, as in Lightly's CIFAR-10 benchmark."""

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter, greyscale, and solarisation of a fifth of second views."""
        options: dict[str, Any] = {"input_size": image_size, "gaussian_blur": 0.0, "normalize": normalize}
        return BYOLTransform(BYOLView1Transform(**options), BYOLView2Transform(**options))


class RandomLoss(Method):
    """Base class of methods whose loss draws random numbers.

    They depend only on the training step. All ranks, an attack and a resumed run therefore draw the same ones, and the
    global random stream does not change.
    """

    step = 0

    def before_step(self, step: int, epochs: int, steps_per_epoch: int) -> None:
        """Store the step."""
        self.step = step

    @contextmanager
    def draws(self, device: torch.device) -> Iterator[None]:
        """Seed torch's generators by the step. Restore them on exit.

        Args:
            device: Device that the loss is computed on.
        """
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.step)
            yield


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return a schedule from the full learning rate to 0 along half a cosine.

    Args:
        optimizer: Optimiser to schedule.
        steps: Number of optimiser steps of the whole training.
    """
    return LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps)))


def full_precision(embeddings: Tensor) -> Tensor:
    """Return embeddings in float32, or unchanged if they are in float64.

    Args:
        embeddings: Embeddings of any shape.
    """
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def keep_in_checkpoints(bank: nn.Module) -> None:
    """Make the buffers of a memory bank persistent.

    Lightly does not save them, so a resumed run would start with an empty memory bank.

    Args:
        bank: Memory bank to change in place.
    """
    for name, buffer in list(bank.named_buffers(recurse=False)):
        bank.register_buffer(name, buffer, persistent=True)


def local_size(image_size: int) -> int:
    """Return the size of local crops in pixels: 96/224 of the image size, as in SwAV and DINO, and at least 8.

    Args:
        image_size: Height and width of global crops, in pixels.
    """
    return max(8, round(image_size * 96 / 224))
