"""MMCR."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from lightly.loss import MMCRLoss
from lightly.models.modules import MMCRProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR, LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.distributed import gathered
from idaa_lightly.options import Count, Fraction, NonNegative
from idaa_lightly_plugins.methods.recipe import MomentumRecipe, full_precision

Pair = tuple[Tensor, Tensor]


class MMCR(MomentumRecipe):
    """Maximum manifold capacity representations (MMCR): a large nuclear norm of the mean embeddings of all samples.

    An attack has a non-zero gradient at the anchor, because it shrinks the norm by moving the means towards each other.

    Source: Yerxa et al., "Learning Efficient Coding of Natural Images with Maximum Manifold Capacity Representations",
    NeurIPS 2023. The recipe is that of the authors' code for CIFAR-10: Adam with learning rate 1e-3 and weight decay
    1e-6 for 500 epochs, a projection head 512-128 without biases, and SimCLR's views without blur.

    Differs from the paper: the momentum network, batches of 256 images and eight views are those of Lightly's example
    (examples/pytorch/mmcr.py). The authors have one network on CIFAR-10, batches of 32 and 40 views. Embeddings have
    unit length, as in the authors' code; Lightly's loss leaves this to its user.
    BatchNorm statistics are computed per view, not over all views.

    Args:
        local_weight: Weight of the nuclear norm of each sample's own views, λ in the paper.
        lr: Learning rate of Adam.
        momentum: Momentum of the momentum network at the first step. It rises to 1.
        hidden_dim: Width of the projection head.
        projection_dim: Dimension of the projection.
        views: Number of views per image. The adversarial view replaces the second one.
    """

    epochs = 500
    batch_size = 256
    scales_lr = False
    multi_crop = True
    rising = True

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        local_weight: NonNegative = 0.0,
        lr: NonNegative = 1e-3,
        momentum: Fraction = 0.996,
        hidden_dim: Count = 512,
        projection_dim: Count = 128,
        views: Annotated[int, Ge(2)] = 8,
    ) -> None:
        head = MMCRProjectionHead(num_features, hidden_dim, projection_dim, num_layers=1)
        super().__init__(backbone, num_features, head, lr=lr, momentum=momentum)
        self.criterion = MMCRLoss(local_weight)
        self.views = views

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return SimCLR's transform for all views."""
        first, *_ = super().transform(image_size, normalize).transforms
        return MultiViewTransform([first] * self.views)

    def embed(self, images: Tensor) -> Pair:
        """Return projections of unit length by the trained and by the momentum network, (N, projection_dim) each."""
        projections = self.project(images), self.project_by_momentum(images)
        trained, followed = (F.normalize(full_precision(part), dim=1) for part in projections)
        return trained, followed

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Return the criterion on the projections of all views and all ranks."""
        trained, followed = zip(anchor, positive, *others, strict=True)
        loss: Tensor = self.criterion(*(gathered(torch.stack(views)).transpose(0, 1) for views in (trained, followed)))
        return loss

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return Adam with a constant learning rate."""
        optimizer = torch.optim.Adam(parameters, lr=self.lr, weight_decay=1e-6)
        return optimizer, ConstantLR(optimizer, factor=1.0)
