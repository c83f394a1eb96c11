"""Frozen features of a data set."""

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
    """Features of the backbone in eval mode; the mode of every part is restored afterwards.

    Args:
        backbone: images (N, C, H, W) to features (N, D).
        batches: images, which follow the backbone to its device and type, and labels (N,).
        on_batch: called after each batch with its number of images, for a progress bar.

    Returns:
        Features (M, D) in float32, and labels (M,), on the CPU.

    Raises:
        DataError: there is no batch.
    """
    modes = [(part, part.training) for part in backbone.modules()]
    parameter = next(backbone.parameters(), torch.empty(0))
    backbone.eval()
    features, labels = [], []
    try:
        for images, targets in batches:
            features.append(backbone(images.to(parameter)).flatten(1).float().cpu())
            labels.append(targets)
            if on_batch is not None:
                on_batch(len(images))
    finally:
        for part, mode in modes:
            part.training = mode
    if not features:
        raise DataError(
            "there is no batch of images to embed: the data loader is empty, or an iterator that is used up"
        )
    return torch.cat(features), torch.cat(labels)
