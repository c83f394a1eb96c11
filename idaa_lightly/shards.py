"""WebDataset shards: tar files of images, with or without their classes."""

from __future__ import annotations

import os
import re
import tarfile
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from idaa_lightly.errors import DataError, IDAAError, UsageError, require_extra
from idaa_lightly.files import require_file
from idaa_lightly.image_files import EXTENSIONS, ImageFiles

REMOTE = re.compile(r"[a-z][a-z0-9+]+:", re.IGNORECASE)
SAMPLE = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)
"""Name of a member: the key of its sample, and its extension. Hidden files have no key, as in `webdataset`."""
NONE = -1
"""Stands for the class of an image that has none."""


def read_shards(pattern: str) -> tuple[ImageFiles, Tensor]:
    """List the images of tar files in WebDataset's format. Images are not read, so that each can be read on its own.

    A sample is an image and, in a file of the same key with the extension "cls", the number of its class. Other files
    are ignored.

    Args:
        pattern: Path of a tar file, or of several with braces, such as "shards-{000..099}.tar". Braces need the package
            braceexpand.

    Returns:
        The images, in the order of the shards; and their classes (N,), which are all `NONE` if there are none.

    Raises:
        DataError: A shard is no whole tar file, holds a key twice, or has classes for some of its images only.
        MissingExtraError: The pattern has braces, but braceexpand is not installed.
        UsageError: The pattern is a URL, or its braces are not balanced.
    """
    paths = _expanded(pattern)
    root = os.path.commonpath([path.parent for path in paths])
    labels = array("q")

    def names() -> Iterator[bytes]:
        for path in paths:
            shard = os.path.relpath(path, root)
            images, classes = _index(path)
            for key, (name, offset, size) in images.items():
                labels.append(classes.get(key, NONE))
                yield os.fsencode(f"{shard}\0{name}\0{offset}\0{size}")

    files = ImageFiles(root, names())
    if not files:
        raise DataError(f"{pattern} holds no images; expected members such as 0001.jpg, and 0001.cls with its class")
    if min(labels) == NONE < max(labels):
        raise DataError(
            f"{files[labels.index(NONE)]} has no class, but other images have one: add a .cls file for each image or "
            "for none"
        )
    return files, torch.tensor(labels)


def _expanded(pattern: str) -> list[Path]:
    if REMOTE.match(pattern):
        raise UsageError(f"{pattern} is not on this machine, but shards are read from disk: download them first")
    names = [pattern]
    if "{" in pattern or "}" in pattern:
        braceexpand = require_extra("braceexpand", "webdataset", "--data wds: with braces").braceexpand
        try:
            names = list(braceexpand(pattern, escape=False))
        except ValueError as error:
            raise UsageError(f"{pattern} cannot be expanded ({error}): write it as shards-{{000..099}}.tar") from error
    return [Path(name).expanduser().absolute() for name in names]


def _index(path: Path) -> tuple[dict[str, tuple[str, int, int]], dict[str, int]]:
    """Return the name, offset and size of the image, and the class, of each sample in a shard."""
    require_file(path, "a shard")
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # They would fill the memory.
                if not (found := SAMPLE.fullmatch(member.name)):
                    continue
                key, extension = found.groups()
                if member.name.lower().endswith(EXTENSIONS):
                    _require_new(member, key, images, path)
                    images[key] = member.name, member.offset_data, member.size
                elif extension.lower() == "cls":
                    _require_new(member, key, classes, path)
                    file.seek(member.offset_data)
                    classes[key] = _class(file.read(min(member.size, 16)), f"{member.name} of {path}")
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any fault for the end.
                raise tarfile.ReadError("it is truncated or damaged")
    except IDAAError:
        raise
    except (tarfile.TarError, OSError, OverflowError, ValueError) as error:
        raise DataError(
            f"cannot read the shard {path} ({getattr(error, 'strerror', None) or error}): expected a whole and "
            "uncompressed tar file"
        ) from error
    return images, classes


def _require_new(member: tarfile.TarInfo, key: str, known: Collection[str], path: Path) -> None:
    if not member.isreg():
        raise DataError(f"{member.name} of {path} is a link or a directory, but expected a file")
    if key in known:
        raise DataError(
            f"{member.name} of {path} repeats the key {key!r}, but expected one image and one class per key: write the "
            "shard again"
        )


def _class(text: bytes, where: str) -> int:
    if not (found := re.fullmatch(rb"\s*(\d{1,9})\s*", text)):
        raise DataError(f"{where} holds {text!r}, but expected the number of a class, such as 7")
    return int(found[1])
