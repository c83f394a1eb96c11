"""Image files, alone or in tar files: listing them in compact form, and decoding them to RGB."""

from __future__ import annotations

import codecs
import math
import os
import struct
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torchvision
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from idaa_lightly.errors import DataError, IDAAError
from idaa_lightly.files import require_file
from idaa_lightly.options import Option, Positive

EXTENSIONS = (*torchvision.datasets.folder.IMG_EXTENSIONS, ".gif")
LIMITS = {"IDAA_LIGHTLY_MAX_PIXELS": 50_000_000, "IDAA_LIGHTLY_MAX_ASPECT": 50}
"""Largest number of pixels and largest ratio of the sides of an image file.

A small file can hold an image that fills the memory when it is decoded or resized. Environment variables with these
names change the limits.
"""
UNREADABLE = (
    Image.DecompressionBombError, EOFError, LookupError, OSError, SyntaxError, TypeError, ValueError,
    ZeroDivisionError, struct.error,
)  # fmt: skip
ORIENTATION = 0x0112  # EXIF tag


class Member(NamedTuple):
    """Image file inside of a tar file.

    Attributes:
        shard: The tar file.
        name: Name of the image in it.
        offset: Position of the first byte of the image in the tar file.
        size: Number of bytes of the image.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.name} of {self.shard}"

    def read(self) -> BytesIO:
        """Return the bytes of the image. The rest of the tar file is not read."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return BytesIO(file.read(self.size))


class ImageFiles(Sequence[Path | Member]):
    """Paths of image files, kept in two arrays.

    The workers of a data loader share the arrays with their parent process. They would copy a list of paths, because
    Python changes the reference count of every object that it reads.

    Args:
        root: Folder that the names are relative to.
        names: Names of the files, encoded as by `os.fsencode`. NUL bytes separate the fields of a `Member`.
    """

    def __init__(self, root: str | Path, names: Iterable[bytes]) -> None:
        text, ends = bytearray(), array("q")
        for name in names:
            text += name
            ends.append(len(text))
        self.root = os.fsencode(root)
        self.text, self.ends = np.frombuffer(bytes(text), np.uint8), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Path | Member: ...
    @overload
    def __getitem__(self, index: slice) -> ImageFiles: ...
    def __getitem__(self, index: int | slice) -> Path | Member | ImageFiles:
        if isinstance(index, slice):
            return ImageFiles(os.fsdecode(self.root), (self.name(i) for i in range(len(self))[index]))
        path, *rest = os.fsdecode(os.path.join(self.root, self.name(range(len(self))[index]))).split("\0")
        return Member(Path(path), rest[0], int(rest[1]), int(rest[2])) if rest else Path(path)

    def name(self, index: int) -> bytes:
        """Return the encoded name of a file, relative to the root. `index` is 0 or more."""
        start = self.ends[index - 1] if index else 0
        return self.text[start : self.ends[index]].tobytes()

    def take(self, indices: Tensor) -> ImageFiles:
        """Return the files at `indices`."""
        return ImageFiles(os.fsdecode(self.root), map(self.name, indices.tolist()))

    def identities(self) -> Iterator[bytes]:
        """Yield the name and the size of each file, with the name of its shard if there is one. Nothing is opened.

        Raises:
            DataError: A file is missing.
        """
        for index in range(len(self)):
            name, *rest = self.name(index).split(b"\0")
            if rest:
                yield b"%b/%b:%b;" % (name, rest[0], rest[2])
                continue
            try:
                size = os.stat(os.path.join(self.root, name)).st_size
            except OSError as error:
                raise _unreadable(self[index], error.strerror or error) from error
            yield b"%b:%d;" % (name, size)


NO_FILES = ImageFiles(".", ())


def list_images(root: Path) -> ImageFiles:
    """List the image files below a folder at any depth, in the order of their paths.

    Files and folders whose name begins with a dot are left out. Symbolic links are followed.

    Args:
        root: The folder.
    """
    return ImageFiles(root, _below(os.fsencode(root), b"", ()))


def read_list(path: Path) -> ImageFiles:
    """Read the names of image files from a text file with one path per line, relative to its folder.

    Args:
        path: The text file, in UTF-8. Empty lines are skipped.

    Raises:
        DataError: The file is in UTF-16, as Windows' PowerShell writes it.
    """
    text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if b"\0" in text:
        raise DataError(f"{path} is not in UTF-8, but expected one path per line in UTF-8: save it as UTF-8")
    return ImageFiles(path.parent, filter(None, (line.strip() for line in text.splitlines())))


def _below(folder: bytes, prefix: bytes, above: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    """Yield the names of image files below a folder. `above` identifies the folders that contain it."""
    found = os.stat(folder)
    here = (found.st_dev, found.st_ino)
    if here in above:  # A symbolic link leads back to it.
        return
    names, folders = [], set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir():
                folders.add(entry.name)
            elif not os.fsdecode(entry.name).lower().endswith(EXTENSIONS):
                continue
            names.append(entry.name)
    for name in sorted(names):
        if name in folders:
            yield from _below(os.path.join(folder, name), prefix + name + b"/", (*above, here))
        else:
            yield prefix + name


def decode(path: Path | Member) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Decode an image file to RGB.

    The image is turned by its EXIF orientation. Of several frames, the first one is decoded. Integer modes with more
    than 8 bits are scaled from 16 to 8 bits. Floating-point images are scaled by their maximum, and values that are not
    finite become 0. Grey becomes RGB, and an alpha channel is dropped as in torchvision's loader.

    Returns:
        The image (H, W, 3) in uint8, and what was done to it, in words.

    Raises:
        DataError: The file is not an image, is truncated, or exceeds one of `LIMITS`.
    """
    with opened(path) as image:
        mode, notes = image.mode, []
        if mode != "RGB":
            notes.append(f"converted from {mode} to RGB")
        if getattr(image, "is_animated", False):
            notes.append("reduced to their first frame")
        image.load()
        with suppress(Exception):  # Pillow raises anything on damaged metadata.
            if image.getexif().get(ORIENTATION) in range(2, 9):
                notes.append("turned by their EXIF orientation")
                ImageOps.exif_transpose(image, in_place=True)
        if mode.startswith(("I", "F")):
            deep = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
            scale = 255 / max(65535.0 if mode != "F" else float(deep.max()), 1e-12)
            grey = (deep * scale).round().clip(0, 255).astype(np.uint8)
            return np.stack([grey] * 3, axis=2), tuple(notes)
        rgb = image.convert("RGBA").convert("RGB") if mode == "P" else image.convert("RGB")
        return np.array(rgb), tuple(notes)


@contextmanager
def opened(path: Path | Member) -> Iterator[Image.Image]:
    """Open an image file for the with-block. Its size is checked against `LIMITS` before anything is decoded.

    Args:
        path: The file, alone or in a shard.

    Raises:
        DataError: The file is not an image, is truncated, or exceeds one of `LIMITS`.
        FileFormatError: The path is a FIFO or a device, which could block forever.
    """
    require_file(path.shard if isinstance(path, Member) else path, "an image")
    limits = {name: Option(name, Positive).parse(os.environ.get(name, usual)) for name, usual in LIMITS.items()}
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow refuses twice as many pixels.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, math.ceil(limits["IDAA_LIGHTLY_MAX_PIXELS"]))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")  # It reads EXIF, and warns of damaged ones.
            with Image.open(path.read() if isinstance(path, Member) else path) as image:
                width, height = image.size
                pixels, aspect = width * height, max(width, height) / min(width, height)
                for (name, limit), what, value in zip(
                    limits.items(), ("a number of pixels", "an aspect ratio"), (pixels, aspect), strict=True
                ):
                    if value > limit:
                        raise DataError(
                            f"the image {path} has {width} × {height} px, but expected {what} of {limit:g} or less: "
                            f"remove it, or set the environment variable {name}={math.ceil(value)}"
                        )
                yield image
    except IDAAError:
        raise
    except UnidentifiedImageError as error:
        raise _unreadable(path, "it has no known image format") from error
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | Member, reason: object) -> DataError:
    return DataError(f"cannot read the image {path} ({reason}): repair it or remove it")
