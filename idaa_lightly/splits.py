"""Deterministic choices of images that are balanced over their classes."""

from __future__ import annotations

import torch
from torch import Tensor

from idaa_lightly.errors import DataError

VALIDATION = 0.1  # fraction of each class of the training images


def validation_split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Split training images into those that stay and a tenth of each class for validation.

    The choice is deterministic. A class with a single image stays. Every other class has at least one image on both
    sides.

    Args:
        labels: Class indices (N,) of the training images.

    Returns:
        Indices of the images that stay, and of the validation images, in ascending order.

    Raises:
        DataError: Each class has a single image.
    """
    return split(labels, VALIDATION)


def split(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split images into those that stay and a fraction of each class; see `validation_split`.

    Args:
        labels: Class indices (N,).
        fraction: Fraction of each class that does not stay, in (0, 1).

    Returns:
        Indices of the images that stay, and of the others, in ascending order.

    Raises:
        DataError: Each class has a single image.
    """
    turn, counts = _turns(labels), labels.bincount()
    wanted = (counts * fraction).round().clamp_min(1).minimum(counts - 1)
    held = turn < wanted[labels]
    if not held.any():
        raise DataError(
            f"{len(labels)} image(s) cannot be split, because each class has a single one: expected two or more in some"
        )
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def balanced(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return the indices of `count` samples, taken from each class in turn.

    Args:
        labels: Class indices (N,).
        count: Number of samples. All are returned if there are fewer.
        seed: Seed of the choice.
    """
    return _turns(labels, seed).argsort(stable=True)[:count]


def _turns(labels: Tensor, seed: int = 0) -> Tensor:
    """Return each sample's position (N,), from 0, in a deterministic shuffle of its class."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    turns = torch.empty(len(labels), dtype=torch.long)
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    turns[by_class] = torch.arange(len(labels)) - starts.repeat_interleave(counts)
    return turns


def sample(total: int, count: int) -> Tensor:
    """Return `count` random indices below `total` in ascending order, always the same. All if there are fewer."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values
