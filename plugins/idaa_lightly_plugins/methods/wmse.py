"""W-MSE."""

from __future__ import annotations

from bisect import bisect_right

import torch
from lightly.loss import WMSELoss
from lightly.models.modules.heads import ProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.distributed import gathered
from idaa_lightly.errors import NonFiniteError, UsageError
from idaa_lightly.options import Count, Fraction, NonNegative
from idaa_lightly.plugin import PairMethod
from idaa_lightly_plugins.methods.recipe import RandomLoss, full_precision


class WMSE(RandomLoss, PairMethod):
    """Whitening MSE (W-MSE): the mean squared distance of whitened projections, without negatives.

    Each view of a batch is whitened by its own covariance. A view compared with itself has equal whitened projections,
    so the loss is at its minimum. Attacks that start at the view are therefore refused.

    Source: Ermolov et al., "Whitening for Self-Supervised Representation Learning", ICML 2021, Sec. 3. The recipe is
    that of the authors' code for CIFAR-10 (W-MSE 2): Adam, weight decay 1e-6, batches of 512 images, 1000 epochs, a
    warm-up of 500 steps, and a learning rate that drops to a fifth 50 and 25 epochs before the end. The projection head
    has widths 1024 and 64.

    Differs from the paper: views are cropped before the colour jitter, not after it, and the covariance is shrunk, so
    that a collapsed batch can be whitened. BatchNorm statistics are computed per view, not over all views.

    The loss does not change if the projections are mapped linearly, so their covariance may become ill-conditioned. In
    our short runs, accuracy falls with it: watch RankMe, and stop early.

    Args:
        lr: Learning rate of Adam. In shorter trainings, warm-up and drops are moved in proportion.
        hidden_dim: Width of the projection head.
        whitened_dim: Dimension of the projection. It must be at most half of `whitening_size`.
        whitening_size: Number of samples that are whitened together. A batch must be a multiple of it, or smaller.
        shrinkage: Weight of the identity matrix in the covariance of projections with unit mean variance.

    Raises:
        UsageError: `whitened_dim` is more than half of `whitening_size`.
    """

    epochs = 1000
    batch_size = 512
    start_gradient = False
    criterion: WMSELoss

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        lr: NonNegative = 3e-3,
        hidden_dim: Count = 1024,
        whitened_dim: Count = 64,
        whitening_size: Count = 128,
        shrinkage: Fraction = 1e-4,
    ) -> None:
        super().__init__(backbone, num_features)
        self._require_samples(whitening_size, whitened_dim)
        hidden = nn.BatchNorm1d(hidden_dim)
        self.head = ProjectionHead(
            [(num_features, hidden_dim, hidden, nn.ReLU()), (hidden_dim, whitened_dim, None, None)]
        )
        # Running statistics would serve an evaluation of whitened projections, which does not take place.
        self.criterion = WMSELoss(whitened_dim, eps=shrinkage, track_running_stats=False, w_size=whitening_size)
        self.lr, self.whitened_dim, self.whitening_size = lr, whitened_dim, whitening_size

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter and greyscale."""
        return SimCLRTransform(
            image_size, cj_strength=0.5, random_gray_scale=0.1, min_scale=0.2, gaussian_blur=0.0, normalize=normalize
        )

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the criterion on the projections of all ranks.

        Raises:
            UsageError: The samples cannot be divided into groups of `whitening_size`.
            NonFiniteError: The covariance of the projections is singular.
        """
        views = torch.cat([gathered(full_precision(view)) for view in (anchor, positive)])
        views = views - views.mean(0)  # Whitening removes shift and scale, but the shrinkage does not.
        views = views / views.detach().square().mean().sqrt().clamp_min(1e-6)
        samples = len(views) // 2
        size = self.criterion.w_size = min(self.whitening_size, samples)
        self._require_samples(size, self.whitened_dim)
        if samples % size:
            raise UsageError(f"{samples} samples cannot be whitened in groups of {size}: use a multiple as batch size")
        with self.draws(views.device), torch.autocast(views.device.type, enabled=False):
            try:
                loss: Tensor = self.criterion(views)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise NonFiniteError(
                    "the projections cannot be whitened, because their covariance has become singular: lower the "
                    "learning rate, or raise method.shrinkage"
                ) from error
        return loss

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return Adam with warm-up and two drops of the learning rate."""
        optimizer = torch.optim.Adam(parameters, lr=self.lr, weight_decay=1e-6)
        steps = epochs * steps_per_epoch
        warmup, drops = min(500, steps // 10), [round(steps * share) for share in (0.95, 0.975)]
        return optimizer, LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)) * 0.2 ** bisect_right(drops, step)
        )

    @staticmethod
    def _require_samples(samples: int, dim: int) -> None:
        if samples < 2 * dim:
            raise UsageError(
                f"{samples} samples are whitened in {dim} dimensions, but twice as many samples as dimensions are "
                "needed: lower whitened_dim, or raise whitening_size and the batch size"
            )
