"""Folders in COCO's format: every annotation is checked, and turned into boxes and masks.

    PATH/annotations/instances_train2017.json      any name that starts with instances_train
    PATH/annotations/instances_val2017.json        any name that starts with instances_val
    PATH/train2017/, PATH/val2017/                 images, or images/train2017/ and images/val2017/

The name of an annotation file without "instances_" is that of its image folder.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Len
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import NotRequired

from idaa_lightly.bench.detect.masks import Rle, mask_of, usable
from idaa_lightly.bench.schema import Open
from idaa_lightly.errors import DataError, require_extra
from idaa_lightly.files import require_file
from idaa_lightly.image_files import decode

Target = dict[str, Tensor]


class Category(Open):
    """Class of objects."""

    id: int
    name: str


class ImageEntry(Open):
    """Image, with its size in pixels."""

    id: int
    file_name: str
    width: Annotated[int, Ge(1)]
    height: Annotated[int, Ge(1)]


class Annotation(Open):
    """Object: its box [x, y, width, height] and its mask, as polygons or run lengths."""

    id: int
    image_id: int
    category_id: int
    bbox: Annotated[list[float], Len(4, 4)]
    segmentation: list[list[float]] | Rle
    iscrowd: NotRequired[Literal[0, 1]]


class CocoFile(Open):
    """Content of an annotation file."""

    images: list[ImageEntry]
    categories: list[Category]
    annotations: list[Annotation]


EXPECTED = {
    "bbox": "4 finite numbers [x, y, width, height] in pixels",
    "segmentation": "polygons [[x1, y1, x2, y2, ...], ...] or an RLE {counts, size}",
    "iscrowd": "0 or 1",
    "width": "a whole number of pixels above 0",
    "height": "a whole number of pixels above 0",
    "file_name": "a text",
    "name": "a text",
}
"""Forms of fields, for messages. All others are ids."""
LEAST = 1e-3
"""Least side of a box, in pixels. A smaller one can vanish in float32, which torchvision refuses."""
ADAPTER: TypeAdapter[Any] = TypeAdapter(CocoFile)


class Thing(NamedTuple):
    """Object that can be used.

    Attributes:
        box: Corners x1, y1, x2, y2 in pixels, inside of the image.
        label: Class, from 1. 0 is the background.
        segmentation: Polygons of three or more points, or run lengths.
        crowd: True if it stands for several objects. It is not trained on, and ignored in the evaluation.
    """

    box: tuple[float, float, float, float]
    label: int
    segmentation: Any
    crowd: bool


@dataclass(frozen=True)
class CocoImages:
    """Images of one split, with their objects.

    Attributes:
        path: Annotation file.
        folder: Folder of the images.
        entries: Images.
        things: Objects of each image.
        categories: Names of the classes by id, in ascending order of the ids.
        notes: Sentences on annotations that were left out.
    """

    path: Path
    folder: Path
    entries: list[ImageEntry]
    things: list[list[Thing]]
    categories: dict[int, str]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the annotation file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    def trainable(self) -> CocoImages:
        """Return the images that have objects, without crowds."""
        kept = [[thing for thing in things if not thing.crowd] for things in self.things]
        rows = [index for index, things in enumerate(kept) if things]
        found = [self.entries[row] for row in rows], [kept[row] for row in rows]
        return CocoImages(self.path, self.folder, *found, self.categories, self.notes)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return an image (3, H, W) in [0, 1], and boxes (N, 4), labels (N,), masks (N, H, W) and iscrowd (N,).

        Raises:
            DataError: The file is not an image, or not of the size in the annotation file.
        """
        entry, things = self.entries[index], self.things[index]
        pixels, _ = decode(self.folder / entry["file_name"])
        height, width = pixels.shape[:2]
        if (width, height) != (entry["width"], entry["height"]):
            raise DataError(
                f"{self.folder / entry['file_name']} has {width} × {height} px, but {self.path} has {entry['width']} × "
                f"{entry['height']} for the image {entry['id']}: restore the image, or correct its entry"
            )
        masks = [mask_of(thing.segmentation, height, width) for thing in things]
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, {
            "boxes": torch.tensor([thing.box for thing in things], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64),
            "masks": torch.from_numpy(np.stack(masks) if masks else np.zeros((0, height, width), np.uint8)),
            "iscrowd": torch.tensor([thing.crowd for thing in things], dtype=torch.int64),
        }


class CocoData(NamedTuple):
    """Training and test images of a folder."""

    name: str
    train: CocoImages
    test: CocoImages


def read_coco(name: str) -> CocoData:
    """Read and check the annotations of a folder. Images are read when they are needed.

    Args:
        name: coco:PATH.

    Raises:
        DataError: The folder has another form, or an annotation is malformed.
        MissingExtraError: pycocotools is not installed.
    """
    require_extra("pycocotools", "detect", "detection")
    root = Path(name.removeprefix("coco:"))
    if not name.startswith("coco:") or not root.is_dir():
        raise DataError(
            f"data is {name!r}, but expected coco:PATH of a folder with annotations/ and its images: pass one by --data"
        )
    train, test = (_split(root, split) for split in ("train", "val"))
    if train.categories != test.categories:
        other = dict(sorted(train.categories.items() ^ test.categories.items()))
        raise DataError(
            f"{train.path} and {test.path} have different categories ({other}), but expected the same ids and names in "
            "both: correct one of them"
        )
    for images in (train, test):
        if not any(not thing.crowd for things in images.things for thing in things):
            raise DataError(f"{images.path} has no object that can be used: add annotations with boxes and masks")
    return CocoData(name, train.trainable(), test)


def _split(root: Path, split: str) -> CocoImages:
    found = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(found) != 1:
        raise DataError(
            f"{root / 'annotations'} has {len(found)} files instances_{split}*.json, but expected one: "
            + ("keep one of them there" if found else "put COCO's annotations there")
        )
    path = found[0]
    content = _content(path)
    for kind in ("images", "categories", "annotations"):
        ids = Counter(entry["id"] for entry in content[kind])
        if twice := [number for number, count in ids.items() if count > 1]:
            raise DataError(f"{path}: {kind} have the id {twice[0]} twice, but expected different ids: renumber them")
    name = path.stem.removeprefix("instances_")
    folder = next((place for place in (root / name, root / "images" / name) if place.is_dir()), None)
    if folder is None:
        raise DataError(f"{root} has neither {name}/ nor images/{name}/, but {path} expects its images there: add them")
    missing = [entry for entry in content["images"] if not (folder / entry["file_name"]).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(content['images'])} images of {path} are missing, such as "
            f"{folder / missing[0]['file_name']} (id {missing[0]['id']}): add them, or remove their entries"
        )
    categories = {entry["id"]: entry["name"] for entry in sorted(content["categories"], key=lambda entry: entry["id"])}
    things, notes = _things(path, content, {number: label for label, number in enumerate(categories, 1)})
    return CocoImages(path, folder, content["images"], things, categories, notes)


def _content(path: Path) -> Any:
    """Return the content of an annotation file, whose types have been checked."""
    require_file(path, "annotations in COCO's format")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): repair or restore it") from error
    try:
        ADAPTER.validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        kind, number, field, *_ = [*first["loc"], "", "", ""]
        entry: Any = content[kind][number] if isinstance(number, int) else None
        if not isinstance(entry, dict):
            place, got = ".".join(filter(None, (str(kind), str(number)))) or "its content", first["msg"]
            raise DataError(
                f"{path}: {place} is no entry of COCO's format ({got}): expected {{images, categories, annotations}}, "
                "lists of entries"
            ) from error
        got = f"{field} {str(entry[field])[:80]}" if field in entry else f"no {field}"
        raise DataError(
            f"{path}: {kind}[{number}] (id {entry.get('id')}) has {got}, but expected "
            f"{EXPECTED.get(str(field), 'a whole number')}: correct or remove the entry"
        ) from error
    return content


def _things(path: Path, content: Any, labels: dict[int, int]) -> tuple[list[list[Thing]], tuple[str, ...]]:
    """Return the objects of each image that can be used, and notes on those that cannot."""
    rows = {entry["id"]: index for index, entry in enumerate(content["images"])}
    things: list[list[Thing]] = [[] for _ in rows]
    left: dict[str, list[int]] = {}
    for entry in content["annotations"]:
        for key, known in (("image_id", rows), ("category_id", labels)):
            if entry[key] not in known:
                raise DataError(
                    f"{path}: the annotation {entry['id']} has {key} {entry[key]}, but expected an id of its "
                    f"{'images' if key == 'image_id' else 'categories'}: correct or remove it"
                )
        row = rows[entry["image_id"]]
        width, height = (content["images"][row][side] for side in ("width", "height"))
        x, y, w, h = entry["bbox"]
        box = max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)
        segmentation = usable(entry["segmentation"], f"{path}: the annotation {entry['id']}", height, width)
        if min(w, h) < LEAST:
            left.setdefault("their boxes have no area", []).append(entry["id"])
        elif min(box[2] - box[0], box[3] - box[1]) < LEAST:
            left.setdefault("their boxes are outside of the image", []).append(entry["id"])
        elif not segmentation:
            left.setdefault("their masks are empty", []).append(entry["id"])
        else:
            crowd = bool(entry.get("iscrowd", 0))
            things[row].append(Thing(box, labels[entry["category_id"]], segmentation, crowd))
    return things, tuple(
        f"{len(ids)} annotations of {path.name} are left out, because {reason}, such as id {ids[0]}"
        for reason, ids in left.items()
    )
