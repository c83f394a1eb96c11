"""Data sets and their images.

Small images (up to 96 px) are decoded once into memory; larger ones are read from disk each time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
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

from idaa_lightly.errors import DataError, UsageError, suggestion
from idaa_lightly.options import Count, ImageSize, Share, checked
from idaa_lightly.torchvision_data import SETS, read_torchvision

IN_MEMORY = 96  # px; up to here all images are decoded at the start
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NAMES = ("digits", *SETS)
UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
Progress = Callable[[str, int], Callable[[str], None]]


@dataclass(frozen=True)
class Images:
    """The images of one split: pixels (N, S, S, 3), uint8, in memory, or else paths; and labels (N,)."""

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
        """The images at these indices."""
        pixels = None if self.pixels is None else self.pixels[indices]
        return Images(self.labels[indices], pixels, tuple(self.paths[i] for i in indices if self.paths))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the labels and of the pixels, or of the names and sizes of the files."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        if self.pixels is not None:
            digest.update(self.pixels.numpy().tobytes())
        for path in self.paths:
            digest.update(f"{path.name}:{path.stat().st_size};".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class DataSet:
    """Train and test images, ready for views.

    Attributes:
        name: as it was asked for.
        classes: their names, by label.
        image_size: of the views, in pixels.
        normalize: mean and standard deviation per channel, of pixels in [0, 1].
        notes: sentences on what was done to the images.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    image_size: int
    normalize: dict[str, list[float]]
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """As JSON values, for a record."""
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
    """Loads a data set by name.

    Args:
        name: one of `NAMES`, or "folder:PATH" for an image folder with train/ and test/ or val/ below it, a folder
            per class in each; or one such folder, which is split.
        data_dir: where torchvision's data sets are kept or downloaded to.
        image_size: in pixels; where it is None, the images' own if they are square and up to 96 px, else the largest
            of 32, 64, 96 and 224 that most of them fill.
        limit_train: keep this many training images, spread over the classes; the same ones each time, and a smaller
            number's are among a larger one's.
        test_fraction: of a folder that has to be split, in (0, 1).
        normalize: mean and standard deviation that a trained network expects; where it is None, those of the training
            images up to 96 px, else ImageNet's.
        progress: called with a title and a number of steps, gives a function to call after each step.

    Raises:
        DataError: nothing there, or an image cannot be read.
        UsageError: no such data set, or a value out of range.
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


def decode(path: Path) -> tuple[np.ndarray[Any, Any], str]:
    """An image file as RGB, (H, W, 3) in uint8, and the mode it was stored in.

    16 bits are scaled to 8; grey becomes RGB; an alpha channel is dropped, as torchvision's loader does.

    Raises:
        DataError: the file is no image or is cut short.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode.startswith(("I", "F")):
                deep = np.asarray(image, dtype=np.float64)
                scale = 255 / max(65535.0 if mode != "F" else float(deep.max()), 1e-12)
                grey = (deep * scale).round().clip(0, 255).astype(np.uint8)
                return np.stack([grey] * 3, axis=2), mode
            return np.array(image.convert("RGBA").convert("RGB") if mode == "P" else image.convert("RGB")), mode
    except UNREADABLE as error:
        raise DataError(f"cannot read the image {path} ({error}): repair it or take it out of the folder") from error


def _digits() -> tuple[Images, Images, tuple[str, ...]]:
    """Scikit-learn's digits, 8×8 in 16 grey levels, enlarged to 32×32; a fifth of them is the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images)[:, None].float() * (255 / 16)
    large = torch.nn.functional.interpolate(grey, size=32, mode="bilinear", align_corners=False)
    pixels = large.round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    train, test = _split(Images(torch.from_numpy(bunch.target).long(), pixels), 0.2)
    return train, test, tuple(map(str, range(10)))


def _folder(root: Path, test_fraction: float) -> tuple[Images, Images, tuple[str, ...]]:
    if not root.is_dir():
        raise DataError(f"{root} is no folder; expected train/ and test/ or val/ below it, or a folder per class")
    parts = [root / part for part in ("train", "test", "val") if (root / part).is_dir()]
    if parts and root / "train" not in parts:
        raise DataError(f"{root} has {parts[0].name}/, but no train/ beside it")
    if not parts:
        images, classes = _class_folders(root)
        return *_split(images, test_fraction), classes
    if len(parts) < 2:
        images, classes = _class_folders(parts[0])
        return *_split(images, test_fraction), classes
    (train, classes), (test, test_classes) = (_class_folders(part) for part in parts[:2])
    if set(test_classes) != set(classes):
        odd = sorted(set(classes) ^ set(test_classes))
        raise DataError(f"{parts[0]} and {parts[1]} have different classes, such as {odd[0]!r}")
    return train, test, classes


def _class_folders(root: Path) -> tuple[Images, tuple[str, ...]]:
    """A folder per class; a folder of images alone counts as one class."""
    extensions = torchvision.datasets.folder.IMG_EXTENSIONS
    folders = sorted(path for path in root.iterdir() if path.is_dir()) or [root]
    found = [[path for path in sorted(folder.rglob("*")) if path.suffix.lower() in extensions] for folder in folders]
    kept = [(folder.name, paths) for folder, paths in zip(folders, found, strict=True) if paths]
    if not kept:
        raise DataError(f"{root} holds no images; expected files such as {root}/CLASS/NAME.png")
    labels = torch.tensor([label for label, (_, paths) in enumerate(kept) for _ in paths])
    return Images(labels, paths=tuple(p for _, paths in kept for p in paths)), tuple(name for name, _ in kept)


def _split(images: Images, test_fraction: float) -> tuple[Images, Images]:
    """Train and test, each class divided in the same proportion, with an image or more on both sides."""
    turn, counts = _turns(images.labels), images.labels.bincount()
    wanted = (counts * test_fraction).round().clamp_min(1).minimum(counts - 1)
    in_test = turn < wanted[images.labels]
    if not in_test.any():
        raise DataError(f"{len(images)} image(s) cannot be split into train and test")
    return images.take((~in_test).nonzero()[:, 0]), images.take(in_test.nonzero()[:, 0])


def _balanced(labels: Tensor, count: int) -> Tensor:
    """Indices of `count` samples, taken class by class in turn."""
    return _turns(labels).argsort(stable=True)[:count]


def _turns(labels: Tensor) -> Tensor:
    """Each sample's place, from 0, in a shuffle of its class that is the same each time."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    turns = torch.empty(len(labels), dtype=torch.long)
    for label in range(int(labels.max()) + 1):
        members = shuffled[labels[shuffled] == label]
        turns[members] = torch.arange(len(members))
    return turns


def _usual_size(images: Images) -> int:
    """The images' own size if it is the same square for all, up to 96 px; else the largest usual one they fill."""
    if images.pixels is not None:
        return int(images.pixels.shape[1])
    sides: list[tuple[int, int]] = []
    for path in images.paths[:: max(1, len(images) // 64)]:
        try:
            with Image.open(path) as image:
                sides.append(image.size)
        except UNREADABLE as error:
            raise DataError(f"cannot read the image {path} ({error}): repair it or take it out") from error
    if len(set(sides)) == 1 and sides[0][0] == sides[0][1] <= IN_MEMORY:
        return sides[0][0]
    middle = sorted(min(side) for side in sides)[len(sides) // 2]
    return max([size for size in (32, 64, 96, 224) if size <= middle], default=32)


def _decoded(images: Images, size: int, notes: Counter[str], step: Callable[[str], None]) -> Images:
    """The images in memory, square, of the given size."""
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
    """Mean and standard deviation per channel, of pixels in [0, 1], rounded as papers print them."""
    flat = pixels.reshape(-1, 3).double() / 255
    std, mean = torch.std_mean(flat, 0)
    return {
        "mean": [round(v, 4) for v in mean.tolist()],
        "std": [round(max(v, 1e-3), 4) for v in std.tolist()],
    }
