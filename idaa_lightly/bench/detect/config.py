"""Configuration of the training of a detector. This module imports neither torch nor lightly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge

from idaa_lightly.bench.config import RunConfig, _option
from idaa_lightly.options import Count, ImageSize

DetectMethod = Literal["maskrcnn-fpn", "maskrcnn-c4"]
Start = Literal["run", "scratch", "imagenet"]
Norm = Literal["sync", "batch", "frozen"]
Views = Literal["multiscale", "flip"]
UNUSED = {
    "accumulate", "compile", "data_dir", "eval_data", "evaluate_on", "limit_train", "save_every", "test_fraction",
    "vae", "view_size", "views",
}  # fmt: skip
"""Fields of `RunConfig` that the training of a detector does not have."""


@dataclass(frozen=True)
class DetectConfig(RunConfig):
    """Configuration of the training of a detector. Fields that are None are filled in from the run and the data."""

    method: DetectMethod = _option(
        "maskrcnn-fpn",
        f"Detector: {' or '.join(get_args(DetectMethod))}. fpn: feature pyramid over all stages. c4: proposals from "
        "the third stage, and the last stage as the head.",
    )
    aug: Views = _option(
        "multiscale", "Training images: multiscale (six sizes from 0.8 of --image-size, and flips) or flip alone."
    )
    data: str = _option("", "Data set: coco:PATH, a folder in COCO's format; see docs/detect.md.")
    run: str | None = _option(None, "Run directory whose backbone is used. The same as the argument RUN.")
    init: Start = _option(
        "run",
        "Weights that the backbone starts from: run, scratch (untrained) or imagenet (torchvision's, by supervised "
        "training). Repeat the option to compare several in one table.",
        multiple=True,
    )
    backbone: str | None = _option(
        None, "Network of torchvision or timm. Default: that of RUN. Needed if there is no RUN."
    )
    weights: str | None = _option(
        None,
        "Weights for --init imagenet: a file, or timm. Default: torchvision's IMAGENET1K_V1. Weights of torchvision "
        "and timm are downloaded.",
    )
    norm: Norm = _option(
        "sync",
        "BatchNorms: sync (trained, statistics over all devices), batch (trained, statistics of each device) or frozen "
        "(as they are).",
    )
    image_size: ImageSize | None = _option(
        800, "Shorter side of an image, in pixels. The longer one is at most 5/3 of it."
    )
    steps: Count = _option(
        90_000,
        "Optimiser steps. The default is the 1x schedule for COCO's 118 000 images. The learning rate falls to a tenth "
        "after 2/3 of them, and again after 8/9.",
    )
    epochs: Count | None = _option(None, "Equal parts of the steps, each at most a pass over all images. Filled in.")
    batch_size: Annotated[int, Ge(1)] | None = _option(16, "Images per batch, summed over all devices.")
    lr: float | None = _option(None, "Learning rate for 16 images. Short for --set method.lr=...")

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the fields that can be set."""
        return [name for name in super().names() if name not in UNUSED]
