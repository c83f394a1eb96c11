"""Torchvision data sets by name, each with the split that the field uses.

Separate training and validation images are joined to one training set, as in Kornblith et al., "Do Better ImageNet
Models Transfer Better?", CVPR 2019, Table 1. Hyperparameters are then selected on a part of this training set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from idaa_lightly.errors import DataError
from idaa_lightly.files import locked
from idaa_lightly.image_files import NO_FILES, ImageFiles

Fields = tuple[Tensor, Tensor | None, ImageFiles]
"""Arguments of `idaa_lightly.data.Images`: labels (N,), pixels (N, S, S, 3) in uint8 or None, and files."""

_FLAGS = [{"train": True}], [{"train": False}]


def _splits(*train: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [{"split": name} for name in train], [{"split": "test"}]


SETS: dict[str, tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "cifar10": (datasets.CIFAR10, *_FLAGS),
    "cifar100": (datasets.CIFAR100, *_FLAGS),
    "stl10": (datasets.STL10, *_splits("train")),
    "fashionmnist": (datasets.FashionMNIST, *_FLAGS),
    "svhn": (datasets.SVHN, *_splits("train")),
    "dtd": (datasets.DTD, *_splits("train", "val")),  # the first of ten partitions
    "flowers102": (datasets.Flowers102, *_splits("train", "val")),
    "aircraft": (datasets.FGVCAircraft, *_splits("trainval")),  # labelled by 100 variants
    "pets": (datasets.OxfordIIITPet, *_splits("trainval")),
    "food101": (datasets.Food101, *_splits("train")),
    "cars": (datasets.StanfordCars, [{"split": "train", "download": False}], [{"split": "test", "download": False}]),
}
"""Data set class, constructor arguments of each training part, and constructor arguments of the test part.

StanfordCars is not downloaded, since its download is no longer available.
"""


def read_torchvision(name: str, data_dir: str) -> tuple[Fields, Fields, tuple[str, ...]]:
    """Read a torchvision data set, and download it if it is not in `data_dir` yet.

    Args:
        name: Key of `SETS`.
        data_dir: Folder that is passed to torchvision as `root`.

    Returns:
        Training fields, test fields and class names.

    Raises:
        DataError: The data set is missing or damaged and cannot be downloaded.
    """
    cls, *splits = SETS[name]
    try:
        train, test = _read(cls, data_dir, splits, download=False)
    except (OSError, RuntimeError):
        train, test = _downloaded(name, data_dir)
    fields = _fields(train)
    names = getattr(train[0], "classes", range(int(fields[0].max()) + 1))
    return fields, _fields(test), tuple(map(str, names))


def _read(cls: Any, data_dir: str, splits: list[list[dict[str, Any]]], *, download: bool) -> list[list[Any]]:
    return [[cls(data_dir, **({"download": download} | options)) for options in split] for split in splits]


def _downloaded(name: str, data_dir: str) -> list[list[Any]]:
    """Download a data set, one process at a time, and read it."""
    cls, *splits = SETS[name]
    try:
        Path(data_dir).mkdir(parents=True, exist_ok=True)
        with locked(Path(data_dir) / f".{name}.lock"):
            return _read(cls, data_dir, splits, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not in {data_dir} and cannot be downloaded ({error}): give --data-dir, or a copy of it as "
            "folder:PATH"
        ) from error


def _fields(parts: list[Any]) -> Fields:
    labels = torch.cat([torch.as_tensor(np.asarray(_labels(part))).long() for part in parts])
    if hasattr(parts[0], "data"):
        return labels, torch.cat([_pixels(part) for part in parts]), NO_FILES
    root = parts[0].root
    names = (os.fsencode(os.path.relpath(path, root)) for part in parts for path in _paths(part))
    return labels, None, ImageFiles(root, names)


def _pixels(part: Any) -> Tensor:
    pixels = torch.as_tensor(np.asarray(part.data))
    if pixels.ndim == 3:  # FashionMNIST: (N, H, W)
        pixels = pixels.unsqueeze(3).expand(-1, -1, -1, 3)
    if pixels.shape[1] == 3:  # STL10 and SVHN: (N, 3, H, W)
        pixels = pixels.permute(0, 2, 3, 1)
    return pixels.contiguous()


def _labels(part: Any) -> Any:
    if hasattr(part, "_samples"):
        return [label for _, label in part._samples]
    return next(getattr(part, name) for name in ("labels", "targets", "_labels") if hasattr(part, name))


def _paths(part: Any) -> Any:
    """Return the image files of a data set. Torchvision has them in private attributes only."""
    if hasattr(part, "_samples"):
        return [path for path, _ in part._samples]
    return part._image_files if hasattr(part, "_image_files") else part._images
