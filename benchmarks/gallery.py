"""Draw the strips of docs/gallery.md: what every augmentation makes of the same eight images.

python benchmarks/gallery.py folder:data/cifar10

Each augmentation trains SimCLR with a small network for a few epochs, so that the search or the generator has something
to raise. The strip shows its views, and below them their difference from the images, amplified around grey.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.evaluate.targets import load_run
from idaa_lightly.bench.run.figures import AMPLIFIED
from idaa_lightly.bench.run.train import run
from idaa_lightly.data import DataSet
from idaa_lightly.spaces import Pixels

OUT = Path(__file__).parents[1] / "docs" / "gallery"
VAE: dict[str, Any] = {"width": 64, "bottleneck_dim": 256, "vae_epochs": 40}
STRIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "idaa": ("idaa", VAE),
    "idaa-network": ("idaa", VAE | {"search": "network"}),
    "idaa-undecomposed": ("idaa", VAE | {"decompose": False}),
    "random": ("random", VAE),
    "clae": ("clae", {}),
    "pgd": ("pgd", {}),
    "color-fgsm": ("color-fgsm", {}),
    "affine": ("affine", {}),
    "jitter": ("jitter", {}),
    "color": ("color", {}),
    "viewmaker": ("viewmaker", {}),
    "pinda": ("pinda", {}),
}
"""Augmentation and its options, by the name of the picture."""
COLUMNS, SIDE, GAP = 8, 96, 6  # images, and pixels of each and between them
BATCH = 64  # images that are attacked together, because a contrastive loss needs negatives


@click.command()
@click.argument("data")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/gallery"), show_default=True)
@click.option("--epochs", default=5, show_default=True)
@click.option("--limit-train", default=2000, show_default=True)
def main(data: str, runs: Path, epochs: int, limit_train: int) -> None:
    """Train what is missing in --runs, and draw the strips of the images in DATA."""
    OUT.mkdir(exist_ok=True)
    base = RunConfig(data=data, backbone="resnet9-w16", epochs=epochs, batch_size=128, limit_train=limit_train)
    for name, (aug, options) in STRIPS.items():
        run(replace(base, aug=aug, set={"method": {"lr": 1e-3}, "aug": options}), runs / name, resume=True)
        parts, module = load_run(runs / name)
        pixels, images = _samples(parts.data)
        views = module.train().objective(parts.method, images, images).views
        shown = Pixels(parts.data.normalize).from_normalized(views)[:COLUMNS].detach()
        _save(OUT / f"{name}.png", shown, 0.5 + AMPLIFIED * (shown - pixels[:COLUMNS]))
    _save(OUT / "images.png", pixels[:COLUMNS])
    torch.manual_seed(0)
    transform = SimCLRTransform(pixels.shape[-1], gaussian_blur=0.0, normalize=None).transforms[0]
    _save(OUT / "ordinary.png", torch.stack([transform(_picture(image)) for image in pixels[:COLUMNS]]))


def _samples(data: DataSet) -> tuple[Tensor, Tensor]:
    """Return test images in [0, 1] and normalised, (N, 3, S, S). The first ones are of different classes."""
    assert data.test.pixels is not None
    order = torch.argsort(
        torch.arange(len(data.test)) - data.test.labels * len(data.test) // len(data.classes), stable=True
    )
    pixels = data.test.pixels[order[:BATCH]].permute(0, 3, 1, 2) / 255
    return pixels, Pixels(data.normalize).normalized(pixels)


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray((255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy())


def _save(path: Path, *rows: Tensor) -> None:
    """Write rows of images (N, 3, S, S) in [0, 1] as one PNG with a transparent gap between them."""
    step = SIDE + GAP
    sheet = Image.new("RGBA", (COLUMNS * step - GAP, len(rows) * step - GAP))
    for row, column in np.ndindex(len(rows), COLUMNS):
        sheet.paste(
            _picture(rows[row][column]).resize((SIDE, SIDE), Image.Resampling.NEAREST), (column * step, row * step)
        )
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    main()
