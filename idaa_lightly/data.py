"""Data sets by name or from image files and shards, with or without labels.

Images of up to 96 px are decoded into memory once if they take up to 2 GB. Other image files are read from disk each
time.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from idaa_lightly.errors import DataError, UsageError, suggestion
from idaa_lightly.image_files import EXTENSIONS, NO_FILES, ImageFiles, decode, list_images, opened, read_list
from idaa_lightly.options import Count, ImageSize, Share, checked
from idaa_lightly.shards import NONE, read_shards
from idaa_lightly.splits import balanced, split, validation_split
from idaa_lightly.torchvision_data import SETS, read_torchvision

IN_MEMORY = 96  # largest image size, in pixels, at which all images are decoded at the start
MEMORY = 2 * 10**9  # largest size of the decoded images, in bytes
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NAMES = ("digits", *SETS)
TRAINING, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
"""Names of the folders of a split, in any case. The first that exists is taken."""
AT_TOP = "."  # stands for the class of images that are in no class folder
Progress = Callable[[str, int], Callable[[str], None]]
"""Function of a title and a number of steps that starts a progress bar.

It returns a function to call with a text after each step.
"""


@dataclass(frozen=True)
class Images:
    """Images and labels of one split, either in memory or on disk.

    Attributes:
        labels: Class indices (N,). All are 0 if the images have no labels.
        pixels: Decoded images (N, S, S, 3) in uint8. None if the images are on disk.
        paths: Image files, one per label. Empty if the images are in memory.
    """

    labels: Tensor
    pixels: Tensor | None = None
    paths: ImageFiles = NO_FILES

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index].numpy())
        return Image.fromarray(decode(self.paths[index])[0])

    def take(self, indices: Tensor) -> Images:
        """Return the images and labels at `indices`."""
        pixels = None if self.pixels is None else self.pixels[indices]
        return Images(self.labels[indices], pixels, self.paths.take(indices) if self.paths else NO_FILES)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the labels, and of the pixels or of the relative paths and sizes of the files.

        Raises:
            DataError: A file is missing.
        """
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        if self.pixels is not None:
            digest.update(self.pixels.numpy().tobytes())
        for identity in self.paths.identities():
            digest.update(identity)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class DataSet:
    """Training and test images, and the size and normalisation of their views.

    Attributes:
        name: Name that was passed to `load_data`.
        train: Training images.
        test: Test images. Empty if the images have no labels.
        classes: Class names, indexed by label. Empty if the images have no labels.
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

    @property
    def labelled(self) -> bool:
        """True if the images have labels."""
        return bool(self.classes)

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
        name: One of `NAMES`, "folder:PATH", "images:PATH" or "wds:SHARDS". For "folder", PATH holds train/ and test/
            (or val/, see `TEST`), with one folder per class in each. Images are split if PATH has no test/ or val/, or
            has one folder per class itself. With one class, or with images at the top, the images have no labels. For
            "images", they never have labels. PATH is a folder with images at any depth, or a .txt file with one path
            per line, relative to it. For "wds", see `idaa_lightly.shards.read_shards`. Shards with classes are split.
        data_dir: Folder with torchvision's data sets. Missing ones are downloaded to it.
        image_size: Height and width of the views, in pixels. None keeps the size of images in memory, and of image
            files that are all the same square of up to 96 px. For other files, None takes the largest of 32, 64, 96
            and 224 that does not exceed the median of their shorter sides, but at least 32.
        limit_train: Number of training images to keep, balanced over the classes. The choice is deterministic, and
            a smaller subset is contained in every larger one. None keeps all.
        test_fraction: Fraction of each class that becomes test images, if images have to be split.
        normalize: `mean` and `std` per channel that a trained network expects. None computes them from training
            images in memory, and uses ImageNet's for images on disk.
        progress: Starts a progress bar while images are decoded; see `Progress`.

    Raises:
        DataError: The data set cannot be found or downloaded, or an image cannot be read.
        UsageError: The name is unknown, or an argument is out of range.
    """
    report = progress or (lambda title, total: lambda text: None)
    train, test, classes, *sentences = _source(name, data_dir, test_fraction)
    if limit_train is not None:
        train = train.take(balanced(train.labels, limit_train))
    size = image_size or _usual_size(train)
    notes: Counter[str] = Counter()
    if size <= IN_MEMORY and (train.pixels is not None or 3 * size**2 * (len(train) + len(test)) <= MEMORY):
        step = report("reading images", len(train) + len(test)) if train.pixels is None else lambda text: None
        train, test = (_decoded(images, size, notes, step) for images in (train, test))
    sentences += [f"{count} images {what}" for what, count in sorted(notes.items())]
    if normalize is None and train.pixels is None:
        sentences.append(
            "images stay on disk, are converted to RGB and turned by their EXIF orientation when they are read, and "
            "are normalised by ImageNet's mean and standard deviation"
        )
    normalize = normalize or (IMAGENET if train.pixels is None else _statistics(train.pixels))
    return DataSet(name, train, test, classes, size, normalize, tuple(sentences))


Source = tuple[Images, Images, tuple[str, ...]] | tuple[Images, Images, tuple[str, ...], str]
"""Training images, test images, class names, and a note for the user if there is one."""


def _source(name: str, data_dir: str, test_fraction: float) -> Source:
    kind, colon, place = name.partition(":")
    if colon and kind == "folder":
        return _folder(Path(place).expanduser(), test_fraction)
    if colon and kind == "images":
        return *_unlabelled(_listed(Path(place).expanduser())), ()
    if colon and kind == "wds":
        return _sharded(place, test_fraction)
    if name == "digits":
        return _digits()
    if name in SETS:
        train, test, classes = read_torchvision(name, data_dir)
        return Images(*train), Images(*test), classes
    raise UsageError(
        f"no data set {name!r}; known: {', '.join(NAMES)}, folder:PATH, images:PATH, wds:SHARDS."
        f"{suggestion(name, NAMES)}"
    )


def _listed(place: Path) -> ImageFiles:
    """Return the image files of a folder or of a list."""
    if place.is_file() and place.suffix == ".txt":
        files = read_list(place)
    elif place.is_dir():
        files = list_images(place)
    else:
        raise DataError(
            f"{place} is {'a file' if place.exists() else 'missing'}, but expected a folder of images, or a .txt file "
            "with one path per line"
        )
    if not files:
        raise DataError(f"{place} holds no images; expected files that end in {', '.join(EXTENSIONS)}")
    return files


def _unlabelled(files: ImageFiles) -> tuple[Images, Images]:
    """Return the images without labels, and no test images."""
    return Images(torch.zeros(len(files), dtype=torch.long), paths=files), Images(torch.empty(0, dtype=torch.long))


def _digits() -> tuple[Images, Images, tuple[str, ...]]:
    """Return scikit-learn's digits (8×8, 17 grey levels), enlarged to 32×32 and split 80:20."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images)[:, None].float() * (255 / 16)
    large = torch.nn.functional.interpolate(grey, size=32, mode="bilinear", align_corners=False)
    pixels = large.round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    images = Images(torch.from_numpy(bunch.target).long(), pixels)
    train, test = map(images.take, split(images.labels, 0.2))
    return train, test, tuple(map(str, range(10)))


def _folder(root: Path, test_fraction: float) -> Source:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected train/ and test/ or val/ below it, or a folder per class")
    below = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."}
    splits = [[below.pop(name) for name in names if name in below] for names in (TRAINING, TEST)]
    if splits[1] and not splits[0]:
        raise DataError(f"{root} has {splits[1][0].name}/, but no train/ beside it: add it, or rename the class")
    if splits[0] and (other := next((path for path in below.values() if list_images(path)), None)):
        raise DataError(
            f"{root} has {splits[0][0].name}/ and images in {other.name}/, but expected train/ with test/ or val/, or "
            f"a folder per class: move {other.name}/ away, or rename the class {splits[0][0].name}"
        )
    place, *others = [*splits[0][:1], *splits[1]] or [root]
    images, classes = _class_folders(place)
    if len(classes) < 2 or AT_TOP in classes:
        found = "images at its top" if AT_TOP in classes else f"images of only one class, {classes[0]}"
        note = f"{place} has {found}, so that all its images are treated as unlabelled"
        return *_unlabelled(images.paths), (), note
    if not others:
        train, test = map(images.take, split(images.labels, test_fraction))
        return train, test, classes
    test, test_classes = _class_folders(others[0])
    if AT_TOP in test_classes:
        raise DataError(
            f"{others[0]} has images without a class folder, but expected the classes of {place}: move it away, so "
            "that the training images are split"
        )
    if set(test_classes) != set(classes):
        odd = sorted(set(classes) ^ set(test_classes))
        raise DataError(f"{place} and {others[0]} have different classes, such as {odd[0]!r}")
    return images, test, classes


def _sharded(pattern: str, test_fraction: float) -> Source:
    files, numbers = read_shards(pattern)
    classes, labels = numbers.unique(return_inverse=True)
    names = tuple(map(str, classes.tolist()))
    if len(names) > 1:
        train, test = map(Images(labels, paths=files).take, split(labels, test_fraction))
        return train, test, names
    if names == (str(NONE),):
        return *_unlabelled(files), ()
    note = f"{pattern} has images of only one class, {names[0]}, so that all its images are treated as unlabelled"
    return *_unlabelled(files), (), note


def _class_folders(root: Path) -> tuple[Images, tuple[str, ...]]:
    """Return the images and class names of a folder with one folder per class. Its own images are of class `AT_TOP`."""
    files = list_images(root)
    if not files:
        raise DataError(f"{root} holds no images; expected files such as {root}/CLASS/NAME.png")
    labels, classes = array("q"), dict[str, int]()
    for index in range(len(files)):
        folder, slash, _ = files.name(index).partition(b"/")
        labels.append(classes.setdefault(os.fsdecode(folder) if slash else AT_TOP, len(classes)))
    return Images(torch.tensor(labels), paths=files), tuple(classes)


def _usual_size(images: Images) -> int:
    """Return the default image size; see `load_data`. Image files are sampled, not all opened."""
    if images.pixels is not None:
        return int(images.pixels.shape[1])
    sides: list[tuple[int, int]] = []
    for index in range(0, len(images), max(1, len(images) // 64)):
        with opened(images.paths[index]) as image:
            sides.append(image.size)
    if len(set(sides)) == 1 and sides[0][0] == sides[0][1] <= IN_MEMORY:
        return sides[0][0]
    middle = sorted(min(side) for side in sides)[len(sides) // 2]
    return max([size for size in (32, 64, 96, 224) if size <= middle], default=32)


def _decoded(images: Images, size: int, notes: Counter[str], step: Callable[[str], None]) -> Images:
    """Return the images in memory, resized and centre-cropped to `size`. Count conversions in `notes`."""
    if images.pixels is not None and images.pixels.shape[1] == size:
        return replace(images, paths=NO_FILES)
    pixels = torch.empty(len(images), size, size, 3, dtype=torch.uint8)
    for index in range(len(images)):
        if images.pixels is not None:
            image = images[index]
        else:
            decoded, changes = decode(images.paths[index])
            image = Image.fromarray(decoded)
            notes.update(changes)
        if image.size != (size, size):
            notes[f"resized and cropped to {size}×{size}"] += 1
            image = TF.center_crop(TF.resize(image, size), size)
        pixels[index] = torch.from_numpy(np.array(image))
        step("")
    return Images(images.labels, pixels)


def _statistics(pixels: Tensor) -> dict[str, list[float]]:
    """Return `mean` and `std` per channel of pixels in [0, 1], rounded to four decimals."""
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.unbind(-1)]).double()
    values, total = torch.arange(256, dtype=torch.double) / 255, counts[0].sum()
    mean = counts @ values / total
    std = ((counts * (values - mean[:, None]).square()).sum(1) / (total - 1)).sqrt()
    return {
        "mean": [round(v, 4) for v in mean.tolist()],
        "std": [round(max(v, 1e-3), 4) for v in std.tolist()],
    }
