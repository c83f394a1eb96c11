"""Alignment and uniformity on the hypersphere."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from lightly.loss.hypersphere_loss import HypersphereLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.optim.optimizer import ParamsT

from idaa_lightly.distributed import gathered
from idaa_lightly.options import Count, NonNegative, Positive
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import full_precision


class Hypersphere(PairMethod):
    """Alignment and uniformity: views are pulled together, and all samples are spread over the hypersphere.

    An attack that starts at the anchor gets its gradient from the second term.

    Source: Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020. The recipe is that of the authors' code for STL-10, because they have none for CIFAR-10,
    and Lightly's benchmarks do not have this method: SGD with momentum 0.9 and weight decay 1e-4, learning rate 0.12
    per 256 images, divided by ten after 155, 170 and 185 of 200 epochs, batches of 768 images, and strong colour jitter
    on each view.

    Differs from the paper: the projection head is SimCLR's. The authors' is the end of their AlexNet.
    BatchNorm statistics are computed per view, not over both.

    Args:
        uniformity: Weight of the uniformity term, λ in the paper.
        sharpness: Factor on the squared distances of the uniformity term, t in the paper.
        power: Power of the distances of the alignment term, α in the paper.
        lr: Learning rate of SGD. The default is for batches of 768 images, and is scaled for others.
        projection_dim: Dimension of the projection.
    """

    epochs = 200
    batch_size = 768
    scales_lr = True

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        uniformity: NonNegative = 1.0,
        sharpness: Positive = 2.0,
        power: Annotated[float, Ge(1)] = 2.0,
        lr: NonNegative = 0.36,
        projection_dim: Count = 128,
    ) -> None:
        super().__init__(backbone, num_features)
        self.head = SimCLRProjectionHead(num_features, num_features, projection_dim)
        self.criterion = HypersphereLoss(sharpness, uniformity, power)
        self.lr = lr

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter of all views, and greyscale."""
        jitter: dict[str, Any] = dict.fromkeys(("cj_bright", "cj_contrast", "cj_sat", "cj_hue"), 0.4)
        return SimCLRTransform(image_size, cj_prob=1.0, gaussian_blur=0.0, normalize=normalize, **jitter)

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the criterion on the projections of all ranks."""
        return super().loss(*(gathered(full_precision(part)) for part in (anchor, positive)))

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return SGD with a learning rate that falls in three steps."""
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=1e-4)
        falls = [round(epochs * steps_per_epoch * epoch / 200) for epoch in (155, 170, 185)]
        return optimizer, MultiStepLR(optimizer, falls)
