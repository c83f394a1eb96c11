"""Draw a small data set in COCO's format: textured shapes over photographs, with occlusion.

    python benchmarks/detect/draw.py PHOTOS data/shapes --train 300 --test 100 --size 160 --seed 0

PHOTOS is a folder of images. Nine tenths of them are backgrounds of training images, the rest of test images. Shapes
are drawn one over another, and the mask of each is the part that stays visible. Ids have gaps, as in COCO. The same
seed and photographs give the same files.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as masks

Mask = np.ndarray[Any, np.dtype[np.bool_]]
SIDES = {"triangle": 3, "square": 4, "hexagon": 6, "disc": 60, "star": 5}
"""Corners of each shape. A star has as many inner ones."""
VISIBLE = 0.3
"""A shape of which less than this share stays visible is left out of the annotations."""


def outline(kind: str, rng: random.Random, size: int) -> list[tuple[float, float]]:
    """Return the corners of a shape at a random place, in pixels. A part of it may be outside of the image."""
    radius, turn = size * rng.uniform(0.1, 0.26), rng.uniform(0, 2 * math.pi)
    center = [size * rng.uniform(0.08, 0.92) for _ in "xy"]
    stretch = rng.uniform(0.7, 1.0)
    count = SIDES[kind] * (2 if kind == "star" else 1)
    corners = []
    for corner in range(count):
        angle, reach = 2 * math.pi * corner / count, radius * (0.45 if kind == "star" and corner % 2 else 1)
        x, y = reach * math.cos(angle), stretch * reach * math.sin(angle)
        corners.append((
            center[0] + x * math.cos(turn) - y * math.sin(turn), center[1] + x * math.sin(turn) + y * math.cos(turn)
        ))  # fmt: skip
    return corners


def texture(rng: random.Random, size: int) -> np.ndarray[Any, Any]:
    """Return a texture of two random colours, (size, size, 3): stripes, squares, rings or noise."""
    y, x = np.mgrid[:size, :size]
    period, turn = rng.uniform(5, 14), rng.uniform(0, math.pi)
    along = x * math.cos(turn) + y * math.sin(turn)
    across = y * math.cos(turn) - x * math.sin(turn)
    patterns: list[Callable[[], Any]] = [
        lambda: np.sin(2 * math.pi * along / period),
        lambda: np.sin(2 * math.pi * along / period) * np.sin(2 * math.pi * across / period),
        lambda: np.sin(2 * math.pi * np.hypot(x - size / 2, y - size / 2) / period),
        lambda: np.random.default_rng(rng.randrange(2**32)).uniform(-1, 1, (size, size)),
    ]
    share = (rng.choice(patterns)()[..., None] + 1) / 2
    first, second = (np.array([rng.randrange(256) for _ in "rgb"]) for _ in range(2))
    return share * first + (1 - share) * second


def scene(background: Path, rng: random.Random, size: int) -> tuple[Image.Image, list[tuple[str, Mask]]]:
    """Return an image, and name and visible mask of its shapes.

    Args:
        background: Photograph.
        rng: Source of all random choices.
        size: Height and width, in pixels.
    """
    with Image.open(background) as photo:
        side = min(photo.size)
        left, top = (rng.randint(0, length - side) for length in photo.size)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(photo.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box), np.float64)
    drawn: list[tuple[str, Mask, int]] = []
    for _ in range(rng.randint(2, 6)):
        kind = rng.choice(list(SIDES))
        stencil = Image.new("1", (size, size))
        ImageDraw.Draw(stencil).polygon(outline(kind, rng, size), fill=1)
        mask = np.array(stencil)
        pixels = np.where(mask[..., None], texture(rng, size), pixels)
        drawn = [(name, part & ~mask, whole) for name, part, whole in drawn] + [(kind, mask, int(mask.sum()))]
    image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    return image, [(name, part) for name, part, whole in drawn if part.sum() > VISIBLE * max(whole, 50)]


def draw(photos: list[Path], out: Path, split: str, count: int, size: int, seed: int) -> None:
    """Write the images and the annotations of one split.

    Args:
        photos: Backgrounds.
        out: Folder of the data set.
        split: Name such as "train2017".
        count: Number of images.
        size: Height and width, in pixels.
        seed: Seed of all random choices.
    """
    (out / split).mkdir(parents=True)
    (out / "annotations").mkdir(exist_ok=True)
    ids = {name: 10 * (number + 1) for number, name in enumerate(SIDES)}
    images, annotations = [], []
    for index in range(count):
        rng = random.Random(f"{seed} {split} {index}")
        image, shapes = scene(photos[index % len(photos)], rng, size)
        number = 7 * index + 3
        name = f"{number:012}.jpg"
        image.save(out / split / name, quality=95)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for kind, mask in shapes:
            encoded = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append({
                "id": 3 * len(annotations) + 1, "image_id": number, "category_id": ids[kind], "iscrowd": 0,
                "bbox": masks.toBbox(encoded).tolist(), "area": int(mask.sum()),
                "segmentation": {"size": [size, size], "counts": encoded["counts"].decode()},
            })  # fmt: skip
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }
    (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content) + "\n")


def main() -> None:
    """Draw both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photographs")
    parser.add_argument("out", type=Path, help="folder to write, which must not exist")
    parser.add_argument("--train", type=int, default=300, help="training images (300)")
    parser.add_argument("--test", type=int, default=100, help="test images (100)")
    parser.add_argument("--size", type=int, default=160, help="height and width, in pixels (160)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (0)")
    given = parser.parse_args()
    photos = sorted(path for path in given.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(photos) < 2 or given.out.exists():
        parser.error(f"{given.photos} has {len(photos)} photographs (2 or more are needed), or {given.out} exists")
    held = max(1, len(photos) // 10)
    draw(photos[held:], given.out, "train2017", given.train, given.size, given.seed)
    draw(photos[:held], given.out, "val2017", given.test, given.size, given.seed)


if __name__ == "__main__":
    main()
