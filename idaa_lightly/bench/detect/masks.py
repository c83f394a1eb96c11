"""Masks in COCO's format: polygons, and run lengths as numbers or as a compressed string."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Len
from typing_extensions import TypedDict

from idaa_lightly.errors import DataError


class Rle(TypedDict):
    """Run lengths, column by column: counts are numbers or a string that compresses them; size is [height, width]."""

    counts: str | list[int]
    size: Annotated[list[int], Len(2, 2)]


def usable(found: Any, place: str, height: int, width: int) -> Any:
    """Return the polygons that have an area, or the run lengths; nothing if the mask is empty.

    Args:
        found: Polygons or an `Rle`, whose types have been checked.
        place: File and annotation, for error messages.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.

    Raises:
        DataError: A polygon has half a point or one far outside of the image, or run lengths do not fill the image.
    """
    if isinstance(found, list):
        if odd := [part for part in found if len(part) % 2]:
            raise DataError(
                f"{place} has a polygon of {len(odd[0])} numbers, but expected pairs x, y: correct or remove it"
            )
        parts = [np.array(part) for part in found if len(part) >= 6]  # a quarter of the memory of lists
        most = 2 * max(height, width)
        if far := [size for part in parts if not (size := np.abs(part).max()) <= most]:  # It may be NaN.
            raise DataError(
                f"{place} has a polygon with a coordinate of ±{far[0]:g}, but expected one in or near its image, from "
                f"{-most} to {most}: correct or remove it"
            )
        return [part for part in parts if not _straight(part)]
    if found["size"] != [height, width]:
        raise DataError(
            f"{place} has an RLE of size {found['size']}, but expected {[height, width]}, [height, width] of the "
            "image: correct or remove it"
        )
    counts = found["counts"] if isinstance(found["counts"], list) else unpacked(found["counts"])
    if counts is None or min(counts, default=0) < 0 or sum(counts) != height * width:
        got = "cannot be read" if counts is None else f"add up to {sum(counts)}"
        raise DataError(
            f"{place} has an RLE whose counts {got}, but expected numbers from 0 whose sum is {height * width}, the "
            "pixels of its image: correct or remove it"
        )
    return found if any(counts[1::2]) else None


def _straight(polygon: np.ndarray[Any, Any]) -> bool:
    """Return whether all points of a polygon (2N,) are on one line."""
    x, y = polygon[::2] - polygon[0], polygon[1::2] - polygon[1]
    farthest = np.argmax(np.abs(x) + np.abs(y))
    return not np.any(x * y[farthest] - y * x[farthest])


def unpacked(text: str) -> list[int] | None:
    """Return the counts of a compressed RLE. Return None if it is malformed: pycocotools would read beyond its end.

    Source: `rleFrString` of pycocotools. A character holds five bits, lowest first, and whether more follow. From the
    fourth count on, differences to the last but one are stored.
    """
    counts: list[int] = []
    value = place = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << place
        place += 5
        if not bits & 32:
            value -= (bits & 16 > 0) << place
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = place = 0
    return None if place else counts


def mask_of(segmentation: Any, height: int, width: int) -> np.ndarray[Any, Any]:
    """Return the mask of an object, (H, W) in uint8: the union of its polygons, or its run lengths.

    Args:
        segmentation: Polygons or an `Rle`.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
    """
    from pycocotools import mask as masks

    if isinstance(segmentation, list):
        encoded = masks.merge(masks.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = masks.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    decoded: np.ndarray[Any, Any] = masks.decode(encoded)
    return decoded
