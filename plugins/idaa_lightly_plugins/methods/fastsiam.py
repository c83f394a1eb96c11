"""FastSiam."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from lightly.transforms.fast_siam_transform import FastSiamTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn

from idaa_lightly.options import NonNegative
from idaa_lightly_plugins.methods.simsiam import Pair, SimSiam


class FastSiam(SimSiam):
    """SimSiam with more views: the target of a prediction is the mean projection of all other views.

    Source: Pototzky et al., "FastSiam: Resource-Efficient Self-Supervised Learning on a Single GPU", GCPR 2022, Sec. 3.
    The recipe is Lightly's CIFAR-10 benchmark: that of SimSiam with batches of 128 images and four views, for 200
    epochs.

    Args:
        lr: Learning rate of SGD. Lightly's benchmark does not scale it with the batch size.
        views: Number of views per image. The adversarial view replaces the second one.
    """

    epochs = 200
    batch_size = 128
    scales_lr = False
    multi_crop = True

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        lr: NonNegative = 0.06,
        views: Annotated[int, Ge(2)] = 4,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_features, lr=lr, **options)
        self.views = views

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return SimSiam's transform for all views."""
        return FastSiamTransform(self.views, image_size, gaussian_blur=0.0, normalize=normalize)

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Compute the negative cosine of each prediction and the mean of the other views' projections."""
        predictions, projections = (torch.stack(parts) for parts in zip(anchor, positive, *others, strict=True))
        targets = (projections.sum(0) - projections) / (len(projections) - 1)
        loss: Tensor = self.criterion(predictions.flatten(0, 1), targets.flatten(0, 1))
        return loss
