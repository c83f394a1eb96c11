"""Data loaders: augmented views for training, and images without augmentation for evaluation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import functional as TF

from idaa_lightly.data import DataSet, Images
from idaa_lightly.errors import DataError
from idaa_lightly.evaluation.linear import LEAST as PROBE_LEAST
from idaa_lightly.seeding import seed_of, seeded


class SeededDataset(Dataset[Any]):
    """Data set indexed by (epoch, index). Samples depend on these and the seed, not on the number of workers."""

    seed: int


class ViewDataset(SeededDataset):
    """Data set of augmented views, indexed by (epoch, index).

    The views depend only on the seed, the epoch and the index. They do not depend on the number of workers.

    Args:
        images: Images of one split.
        transform: Lightly transform from a PIL image to a list of views.
        seed: Seed of the run.
    """

    def __init__(self, images: Images, transform: Callable[[Image.Image], Any], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int]:
        epoch, index = key
        image = self.images[index]
        with seeded("views", self.seed, epoch, index):
            return self.transform(image), int(self.images.labels[index])


class PixelDataset(SeededDataset):
    """Data set of pixels without augmentation, read a batch at a time by a list of (epoch, index).

    Args:
        images: Images of one split, in memory.
        seed: Seed of the run. The data loader derives its shuffling from it.
    """

    def __init__(self, images: Images, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return pixels (N, S, S, 3) in uint8 and labels (N,). Called by DataLoader once per batch."""
        assert self.images.pixels is not None
        rows = torch.tensor([index for _, index in keys])
        return self.images.pixels[rows], self.images.labels[rows]


class EpochSampler(DistributedSampler[Any]):
    """DistributedSampler that yields (epoch, index)."""

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, index) for index in super().__iter__())


def view_loader(
    views: SeededDataset, batch_size: int, *, workers: int = 0, ranks: int = 1, rank: int = 0
) -> DataLoader[Any]:
    """Return a data loader of shuffled views or pixels. An incomplete last batch is dropped.

    Call `loader.sampler.set_epoch(epoch)` before each epoch, or let Lightning do so.

    Args:
        views: Data set to load. Samples of a `ViewDataset` are stacked; a batch of others stays as it is.
        batch_size: Images per batch, on each rank.
        workers: Number of worker processes.
        ranks: Number of processes that train together (DDP).
        rank: Index of this process.
    """
    seed = seed_of("shuffle", views.seed) // 2  # the sampler adds the epoch
    sampler = EpochSampler(views, num_replicas=ranks, rank=rank, shuffle=True, seed=seed, drop_last=ranks > 1)
    return DataLoader(
        views,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=True,
        collate_fn=None if isinstance(views, ViewDataset) else _as_it_is,
        generator=torch.Generator().manual_seed(seed_of("workers", views.seed)),  # not the global stream
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def evaluation_batches(data: DataSet, images: Images, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of normalised images (N, 3, S, S) without augmentation and labels (N,), in order.

    Args:
        data: Data set that gives the image size and the normalisation.
        images: Images of one of its splits.
        batch_size: Images per batch. The last batch may be smaller.
    """
    for start in range(0, len(images), batch_size):
        rows = range(start, min(start + batch_size, len(images)))
        if images.pixels is not None and images.pixels.shape[1] == data.image_size:
            batch = images.pixels[rows.start : rows.stop].permute(0, 3, 1, 2).float().div(255)
        else:  # as is usual for ImageNet: resize the shorter side to 8/7 of the size, then crop the centre
            parts = (TF.resize(images[i], data.image_size * 8 // 7) for i in rows)
            batch = torch.stack([TF.to_tensor(TF.center_crop(part, data.image_size)) for part in parts])
        yield TF.normalize(batch, **data.normalize), images.labels[rows.start : rows.stop]


def require_trainable(data: DataSet, batch_size: int) -> None:
    """Check that a data set is large enough for training.

    Raises:
        DataError: There are fewer training images than one batch needs.
    """
    if len(data.train) < batch_size:
        raise DataError(
            f"{data.name} has {len(data.train)} training images, fewer than a batch of {batch_size}: lower --batch-size"
        )


def require_labelled(data: DataSet) -> None:
    """Check that a data set has labels, and is large enough for evaluation.

    Raises:
        DataError: There are no labels, or fewer training images than the linear probe needs.
    """
    if not data.labelled:
        raise DataError(f"{data.name} has no labels, but evaluation needs two or more classes, a folder for each")
    if len(data.train) < PROBE_LEAST:
        raise DataError(
            f"{data.name} has {len(data.train)} training images, but evaluation needs {PROBE_LEAST} or more"
        )


def describe(transform: Any, within: tuple[Any, ...] = ()) -> Any:  # noqa: PLR0911 - one return per type
    """Describe a transform as JSON values that distinguish it from others, for a cache key.

    The values are class names and attributes, recursively, and the tensors of a module. A function is described by its
    bytecode, since all lambdas have the same name, and by the names, constants, defaults and enclosed variables that it
    uses.

    Args:
        transform: Transform, or a part of one.
        within: Objects that `transform` is a part of. They may refer to each other.
    """
    if isinstance(transform, str | int | float | bool | None):
        return transform
    if any(transform is part for part in within):
        return type(transform).__qualname__
    inner = partial(describe, within=(*within, transform))
    if isinstance(transform, list | tuple):
        return [inner(part) for part in transform]
    if isinstance(transform, dict):
        return {str(key): inner(value) for key, value in transform.items()}
    if isinstance(transform, CodeType):
        return [transform.co_code.hex(), inner(transform.co_names), inner(transform.co_consts)]
    if isinstance(transform, FunctionType):
        cells = [cell.cell_contents for cell in transform.__closure__ or ()]
        parts = [transform.__code__, transform.__defaults__, transform.__kwdefaults__, cells]
        return [transform.__qualname__, inner(parts)]
    if isinstance(transform, MethodType):
        return [inner(transform.__func__), inner(transform.__self__)]
    if isinstance(transform, frozenset | set):
        return sorted(map(repr, transform))
    if isinstance(transform, Tensor | np.ndarray):
        return transform.tolist()
    if isinstance(transform, partial):
        return ["partial", inner([transform.func, transform.args, transform.keywords])]
    if isinstance(transform, type | Enum) or not hasattr(transform, "__dict__"):
        return re.sub(" at 0x[0-9a-f]+", "", str(transform))  # An address differs in each process.
    own = vars(transform)
    if isinstance(transform, nn.Module):
        own = {name: value for name, value in own.items() if name not in vars(nn.Module())}
        own |= {"training": transform.training, **transform._modules, **transform._parameters, **transform._buffers}
    return [type(transform).__qualname__, inner(own)]
