"""LeJEPA."""

from __future__ import annotations

import torch
from lightly.loss import SIGReg
from lightly.models.modules.heads import LeJEPAProjectionHead
from lightly.transforms.dino_transform import DINOTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.distributed import gathered
from idaa_lightly.options import Count, Fraction, NonNegative, NonNegativeInt
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import RandomLoss, full_precision, local_size


class LeJEPA(RandomLoss, PairMethod):
    """LeJEPA: views are pulled to the mean of the global ones, and their projections to a normal distribution (SIGReg).

    An attack that starts at the anchor gets its gradient from SIGReg.

    Source: Balestriero & LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025,
    arXiv 2511.08544. The recipe is Lightly's ImageNet benchmark (benchmarks/imagenet/vitb16/lejepa.py), because its
    CIFAR-10 benchmark has no LeJEPA: AdamW, one epoch of warm-up, batches of 512 images, 100 epochs, and two global and
    six local views, here without blur. The weight decay of 5e-4 is that of the authors' code for ResNets.

    Differs from Lightly: BatchNorm statistics are computed per view, not over all global or all local views.

    Args:
        regularisation: Weight λ of SIGReg, which grows in proportion to the batch size. The invariance term has the
            weight 1 − λ. With half the batch, about twice the weight keeps their balance.
        slices: Number of random directions of SIGReg. They are drawn anew at each step.
        lr: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW. For vision transformers, the authors advise 0.05.
        hidden_dim: Width of the projection head.
        projection_dim: Dimension of the projection.
        local_views: Number of smaller views per image, in addition to the two global views.
    """

    epochs = 100
    batch_size = 512
    multi_crop = True
    global_views = 2
    criterion: nn.Module

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        regularisation: Fraction = 0.05,
        slices: Count = 1024,
        lr: NonNegative = 5e-4,
        weight_decay: NonNegative = 5e-4,
        hidden_dim: Count = 2048,
        projection_dim: Count = 64,
        local_views: NonNegativeInt = 6,
    ) -> None:
        super().__init__(backbone, num_features)
        self.head = LeJEPAProjectionHead(num_features, hidden_dim, projection_dim)
        self.criterion = SIGReg(num_vectors=slices)
        self.regularisation, self.local_views = regularisation, local_views
        self.lr, self.weight_decay = lr, weight_decay

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform of global and local crops, with flip, colour jitter, greyscale and solarisation."""
        return DINOTransform(
            global_crop_size=image_size,
            global_crop_scale=(0.3, 1.0),
            local_crop_size=local_size(image_size),
            local_crop_scale=(0.05, 0.3),
            n_local_views=self.local_views,
            gaussian_blur=(0.0, 0.0, 0.0),
            normalize=normalize,
        )

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the weighted sum of SIGReg on all ranks and the squared distances to the mean of the global views."""
        views = full_precision(torch.stack([anchor, positive, *others]))
        with self.draws(views.device), torch.autocast(views.device.type, enabled=False):
            gaussian: Tensor = self.criterion(gathered(views))
        return torch.lerp((views - views[: self.global_views].mean(0)).square().mean(), gaussian, self.regularisation)

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return AdamW with a cosine schedule after one epoch of warm-up."""
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        warmup = steps_per_epoch if epochs > 1 else 0
        return optimizer, CosineWarmupScheduler(optimizer, warmup, epochs * steps_per_epoch, warmup_start_value=0.01)
