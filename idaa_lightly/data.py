"""Data sets by name or from image folders.

With an image size of up to 96 px, all images are decoded into memory once. Larger image files are read from disk each
time.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as TF

from idaa_lightly.errors import DataError, IDAAError, UsageError, suggestion
from idaa_lightly.options import Count, ImageSize, Option, Positive, Share, checked
from idaa_lightly.torchvision_data import SETS, read_torchvision

VALIDATION = 0.1  # fraction of each class of the training images
IN_MEMORY = 96  # largest image size, in pixels, at which all images are decoded at the start
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NAMES = ("digits", *SETS)
LIMITS = {"IDAA_LIGHTLY_MAX_PIXELS": 50_000_000, "IDAA_LIGHTLY_MAX_ASPECT": 50}
"""Largest number of pixels and largest ratio of the sides of an image file.

A small file can hold an image that fills the memory, at the latest when it is resized. Environment variables of these
names change the limits.
"""
UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, ZeroDivisionError)
Progress = Callable[[str, int], Callable[[str], None]]
"""Function of a title and a number of steps that starts a progress bar.

It returns a function to call with a text after each step.
"""


@dataclass(frozen=True)
class Images:
    """Images and labels of one split, either in memory or on disk.

    Attributes:
        labels: Class indices (N,).
        pixels: Decoded images (N, S, S, 3) in uint8. None if the images are on disk.
        paths: Image files, one per label. Empty if the images are in memory.
    """

    labels: Tensor
    pixels: Tensor | None = None
    paths: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index].numpy())
        return Image.fromarray(decode(self.paths[index])[0])

    def take(self, indices: Tensor) -> Images:
        """Return the images and labels at `indices`."""
        pixels = None if self.pixels is None else self.pixels[indices]
        return Images(self.labels[indices], pixels, tuple(self.paths[i] for i in indices if self.paths))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the labels, and of the pixels or of the names and sizes of the files."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        if self.pixels is not None:
            digest.update(self.pixels.numpy().tobytes())
        for path in self.paths:
            digest.update(f"{path.name}:{path.stat().st_size};".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class DataSet:
    """Training and test images, and the size and normalisation of their views.

    Attributes:
        name: Name that was passed to `load_data`.
        train: Training images.
        test: Test images.
        classes: Class names, indexed by label.
        image_size: Height and width of the views, in pixels.
        normalize: `mean` and `std` per channel, for pixels in [0, 1].
        notes: Notes on how the images were converted, for the record of a run.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    image_size: int
    normalize: dict[str, list[float]]
    notes: tuple[str, ...] = ()

    def held_out(self) -> DataSet:
        """Return the data set with the validation images as its test images, and without them in training.

        They are a tenth of the training images; see `validation_split`. Settings can be chosen on them, so that the
        test images stay unseen.
        """
        kept, held = (self.train.take(indices) for indices in validation_split(self.train.labels))
        return replace(self, train=kept, test=held)

    def facts(self) -> dict[str, Any]:
        """Return a summary as JSON values, for the record of a run."""
        return {
            "name": self.name,
            "train": len(self.train),
            "test": len(self.test),
            "classes": len(self.classes),
            "image_size": self.image_size,
            "normalize": self.normalize,
            "fingerprint": [self.train.fingerprint, self.test.fingerprint],
            "notes": list(self.notes),
        }


@checked
def load_data(
    name: str,
    *,
    data_dir: str = "data",
    image_size: ImageSize | None = None,
    limit_train: Count | None = None,
    test_fraction: Share = 0.2,
    normalize: dict[str, list[float]] | None = None,
    progress: Progress | None = None,
) -> DataSet:
    """Load a data set by name.

    Args:
        name: One of `NAMES`, or "folder:PATH" for an image folder. PATH holds train/ and test/ (or val/), with one
            folder per class in each. Images are split if PATH has no test/ or val/, or has one folder per class itself.
        data_dir: Folder with torchvision's data sets. Missing ones are downloaded to it.
        image_size: Height and width of the views, in pixels. None keeps the size of images in memory, and of image
            files that are all the same square of up to 96 px. For other files, None takes the largest of 32, 64, 96
            and 224 that does not exceed the median of their shorter sides, but at least 32.
        limit_train: Number of training images to keep, balanced over the classes. The choice is deterministic, and
            a smaller subset is contained in every larger one. None keeps all.
        test_fraction: Fraction of each class that becomes test images, if a folder has to be split.
        normalize: `mean` and `std` per channel that a trained network expects. None computes them from training
            images in memory, and uses ImageNet's for images on disk.
        progress: Starts a progress bar while images are decoded; see `Progress`.

    Raises:
        DataError: The data set cannot be found or downloaded, or an image cannot be read.
        UsageError: The name is unknown, or an argument is out of range.
    """
    report = progress or (lambda title, total: lambda text: None)
    if name.startswith("folder:"):
        train, test, classes = _folder(Path(name.removeprefix("folder:")).expanduser(), test_fraction)
    elif name == "digits":
        train, test, classes = _digits()
    elif name in SETS:
        first, second, classes = read_torchvision(name, data_dir)
        train, test = Images(*first), Images(*second)
    else:
        raise UsageError(f"no data set {name!r}; known: {', '.join(NAMES)}, folder:PATH.{suggestion(name, NAMES)}")
    if limit_train is not None:
        train = train.take(_balanced(train.labels, limit_train))
    size = image_size or _usual_size(train)
    notes: Counter[str] = Counter()
    if size <= IN_MEMORY:
        step = report("reading images", len(train) + len(test)) if train.pixels is None else lambda text: None
        train, test = (_decoded(images, size, notes, step) for images in (train, test))
    sentences = [f"{count} images {what}" for what, count in sorted(notes.items())]
    if normalize is None and train.pixels is None:
        sentences.append("images stay on disk, normalised by ImageNet's mean and standard deviation")
    normalize = normalize or (IMAGENET if train.pixels is None else _statistics(train.pixels))
    return DataSet(name, train, test, classes, size, normalize, tuple(sentences))


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
    return _split(labels, VALIDATION)


def decode(path: Path) -> tuple[np.ndarray[Any, Any], str]:
    """Decode an image file to RGB.

    Integer modes with more than 8 bits are scaled from 16 to 8 bits. Floating-point images are scaled by their maximum.
    Grey becomes RGB, and an alpha channel is dropped as in torchvision's loader.

    Returns:
        The image (H, W, 3) in uint8, and the PIL mode of the file.

    Raises:
        DataError: The file is not an image, is truncated, or exceeds one of `LIMITS`.
    """
    with _opened(path) as image:
        mode = image.mode
        if mode.startswith(("I", "F")):
            deep = np.asarray(image, dtype=np.float64)
            scale = 255 / max(65535.0 if mode != "F" else float(deep.max()), 1e-12)
            grey = (deep * scale).round().clip(0, 255).astype(np.uint8)
            return np.stack([grey] * 3, axis=2), mode
        return np.array(image.convert("RGBA").convert("RGB") if mode == "P" else image.convert("RGB")), mode


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file for the with-block. Its size is checked against `LIMITS` before anything is decoded."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            pixels, aspect = width * height, max(width, height) / min(width, height)
            for name, what, value in zip(
                LIMITS, ("a number of pixels", "an aspect ratio"), (pixels, aspect), strict=True
            ):
                limit = Option(name, Positive).parse(os.environ.get(name, LIMITS[name]))
                if value > limit:
                    raise DataError(
                        f"the image {path} has {width} × {height} px, but expected {what} of {limit:g} or less: remove "
                        f"it from the folder, or set the environment variable {name}={math.ceil(value)}"
                    )
            yield image
    except IDAAError:
        raise
    except UNREADABLE as error:
        raise DataError(f"cannot read the image {path} ({error}): repair it or remove it from the folder") from error


def _digits() -> tuple[Images, Images, tuple[str, ...]]:
    """Return scikit-learn's digits (8×8, 17 grey levels), enlarged to 32×32 and split 80:20."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images)[:, None].float() * (255 / 16)
    large = torch.nn.functional.interpolate(grey, size=32, mode="bilinear", align_corners=False)
    pixels = large.round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    images = Images(torch.from_numpy(bunch.target).long(), pixels)
    train, test = map(images.take, _split(images.labels, 0.2))
    return train, test, tuple(map(str, range(10)))


def _folder(root: Path, test_fraction: float) -> tuple[Images, Images, tuple[str, ...]]:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected train/ and test/ or val/ below it, or a folder per class")
    parts = [root / part for part in ("train", "test", "val") if (root / part).is_dir()]
    if parts and root / "train" not in parts:
        raise DataError(f"{root} has {parts[0].name}/, but no train/ beside it")
    if len(parts) < 2:
        images, classes = _class_folders(parts[0] if parts else root)
        train, test = map(images.take, _split(images.labels, test_fraction))
        return train, test, classes
    (train, classes), (test, test_classes) = (_class_folders(part) for part in parts[:2])
    if set(test_classes) != set(classes):
        odd = sorted(set(classes) ^ set(test_classes))
        raise DataError(f"{parts[0]} and {parts[1]} have different classes, such as {odd[0]!r}")
    return train, test, classes


def _class_folders(root: Path) -> tuple[Images, tuple[str, ...]]:
    """Return the images and class names of a folder with one folder per class.

    A folder without subfolders counts as a single class.
    """
    extensions = torchvision.datasets.folder.IMG_EXTENSIONS
    folders = sorted(path for path in root.iterdir() if path.is_dir()) or [root]
    found = [[path for path in sorted(folder.rglob("*")) if path.suffix.lower() in extensions] for folder in folders]
    kept = [(folder.name, paths) for folder, paths in zip(folders, found, strict=True) if paths]
    if not kept:
        raise DataError(f"{root} holds no images; expected files such as {root}/CLASS/NAME.png")
    labels = torch.tensor([label for label, (_, paths) in enumerate(kept) for _ in paths])
    return Images(labels, paths=tuple(p for _, paths in kept for p in paths)), tuple(name for name, _ in kept)


def _split(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return the indices of images that stay, and of this fraction of each class; see `validation_split`."""
    turn, counts = _turns(labels), labels.bincount()
    wanted = (counts * fraction).round().clamp_min(1).minimum(counts - 1)
    held = turn < wanted[labels]
    if not held.any():
        raise DataError(
            f"{len(labels)} image(s) cannot be split, because each class has a single one: expected two or more in some"
        )
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def _balanced(labels: Tensor, count: int) -> Tensor:
    """Return the indices of `count` samples, taken from each class in turn."""
    return _turns(labels).argsort(stable=True)[:count]


def _turns(labels: Tensor) -> Tensor:
    """Return each sample's position (N,), from 0, in a deterministic shuffle of its class."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    turns = torch.empty(len(labels), dtype=torch.long)
    for label in range(int(labels.max()) + 1):
        members = shuffled[labels[shuffled] == label]
        turns[members] = torch.arange(len(members))
    return turns


def _usual_size(images: Images) -> int:
    """Return the default image size; see `load_data`. Image files are sampled, not all opened."""
    if images.pixels is not None:
        return int(images.pixels.shape[1])
    sides: list[tuple[int, int]] = []
    for path in images.paths[:: max(1, len(images) // 64)]:
        with _opened(path) as image:
            sides.append(image.size)
    if len(set(sides)) == 1 and sides[0][0] == sides[0][1] <= IN_MEMORY:
        return sides[0][0]
    middle = sorted(min(side) for side in sides)[len(sides) // 2]
    return max([size for size in (32, 64, 96, 224) if size <= middle], default=32)


def _decoded(images: Images, size: int, notes: Counter[str], step: Callable[[str], None]) -> Images:
    """Return the images in memory, resized and centre-cropped to `size`. Count conversions in `notes`."""
    if images.pixels is not None and images.pixels.shape[1] == size:
        return replace(images, paths=())
    pixels = torch.empty(len(images), size, size, 3, dtype=torch.uint8)
    for index in range(len(images)):
        if images.pixels is not None:
            image = images[index]
        else:
            array, mode = decode(images.paths[index])
            image = Image.fromarray(array)
            if mode != "RGB":
                notes[f"converted from {mode} to RGB"] += 1
        if image.size != (size, size):
            notes[f"resized and cropped to {size}×{size}"] += 1
            image = TF.center_crop(TF.resize(image, size), size)
        pixels[index] = torch.from_numpy(np.array(image))
        step("")
    return Images(images.labels, pixels)


def _statistics(pixels: Tensor) -> dict[str, list[float]]:
    """Return `mean` and `std` per channel of pixels in [0, 1], rounded to four decimals."""
    flat = pixels.reshape(-1, 3).double() / 255
    std, mean = torch.std_mean(flat, 0)
    return {
        "mean": [round(v, 4) for v in mean.tolist()],
        "std": [round(max(v, 1e-3), 4) for v in std.tolist()],
    }
