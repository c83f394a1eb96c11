"""Features of a data set by a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from idaa_lightly.errors import DataError


@torch.no_grad()
def embed(
    backbone: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    on_batch: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute features of a data set with the backbone in eval mode. Train and eval modes are restored afterwards.

    Args:
        backbone: Module from images (N, C, H, W) to features (N, D).
        batches: Batches of images (N, C, H, W) and labels (N,). Images are moved to the backbone's device and type.
        on_batch: Called after each batch with its number of images, for a progress bar.

    Returns:
        Features (M, D) in float32 and labels (M,), both on the CPU.

    Raises:
        DataError: `batches` is empty.
    """
    modes = [(part, part.training) for part in backbone.modules()]
    parameter = next(backbone.parameters(), torch.empty(0))
    backbone.eval()
    features, labels = [], []
    try:
        for images, targets in batches:
            features.append(backbone(images.to(parameter)).flatten(1).float().cpu())
            labels.append(targets.cpu())
            if on_batch is not None:
                on_batch(len(images))
    finally:
        for part, mode in modes:
            part.training = mode
    if not features:
        raise DataError(
            "there is no batch of images to embed: the data loader is empty, or is an exhausted "
            "iterator: pass one that has batches"
        )
    return torch.cat(features), torch.cat(labels)
