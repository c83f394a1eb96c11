"""Fitting of an augmentation before training, such as IDAA's VAE."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idaa_lightly.bench.progress import progress
from idaa_lightly.bench.run.setup import Parts
from idaa_lightly.errors import PluginError, UsageError
from idaa_lightly.loading import ViewDataset, describe
from idaa_lightly.plugin import Augmentation, FitContext

HALF = "bf16-mixed"


def fit(augmentation: Augmentation, context: FitContext, precision: str) -> None:
    """Fit an augmentation, in bfloat16 if the run trains in bfloat16.

    Args:
        augmentation: Augmentation to fit, in place.
        context: Data and settings that the augmentation may use.
        precision: Precision of the run, as Lightning's Trainer names it.
    """
    half = precision == HALF
    # The cache of autocast is off, because it would keep the weights of the first step.
    with torch.autocast(context.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
        augmentation.fit(context)
    facts: Any = augmentation.fitted()
    try:  # The record, which is written at the end, holds them.
        json.dumps({name: dict(part) for name, part in facts.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise PluginError(
            f"fitted() of {type(augmentation).__name__} returned {facts!r:.200}, but expected a dict of dicts of JSON "
            'values, such as {"vae": {"epochs": 3}}'
        ) from error


def fit_context(parts: Parts, device: torch.device) -> FitContext:
    """Return the context that the augmentation of a run is fitted with.

    Args:
        parts: Parts of the run.
        device: Device of the training.
    """
    return FitContext(
        views=lambda batch_size: FirstViews(parts, batch_size, device),
        key={
            "data": parts.data.train.fingerprint,
            "transform": describe(parts.views.transform),
            "image_size": parts.view_size,
        }
        | ({"views": "device"} if parts.device_views else {})
        | ({"precision": HALF} if parts.config.precision == HALF else {}),
        images=len(parts.views),
        image_size=parts.view_size,
        channels=3,
        normalize=parts.data.normalize,
        epochs=parts.epochs,
        seed=parts.config.seed,
        device=device,
        cache_dir=cache_dir(),
        progress=progress,
    )


def cache_dir() -> Path:
    """Return the cache directory: $IDAA_LIGHTLY_CACHE, or idaa-lightly in the user's cache directory.

    Raises:
        UsageError: The user has no home directory, and no variable names another one.
    """
    if own := os.environ.get("IDAA_LIGHTLY_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "idaa-lightly"
    except RuntimeError as error:  # HOME is unset, and the user is not in the password database.
        raise UsageError("there is no home directory: set HOME or IDAA_LIGHTLY_CACHE to a directory") from error


class FirstViews:
    """Batches (N, C, H, W) of the first view of each image. Every iteration makes new views.

    Args:
        parts: Parts of the run.
        batch_size: Images per batch. Limited to the number of training images.
        device: Device of the training. Views are made on it if the run does so.
    """

    def __init__(self, parts: Parts, batch_size: int, device: torch.device) -> None:
        self.single = parts.views.transform.transforms[0]  # type: ignore[attr-defined]
        first = replace(parts, views=ViewDataset(parts.data.train, self._view, parts.config.seed))
        self.loader, self.epoch = first.loader(min(batch_size, len(parts.views))), 0
        self.make = parts.device_views and parts.device_views.first()
        self.seed, self.device = parts.config.seed, device

    def __iter__(self) -> Iterator[Tensor]:
        self.loader.sampler.set_epoch(self.epoch)  # type: ignore[attr-defined]
        epoch, self.epoch = self.epoch, self.epoch + 1
        for step, (views, _) in enumerate(self.loader):
            make = self.make
            yield views[0] if make is None else make(views.to(self.device), self.seed, "first", epoch, step)[0]

    def _view(self, image: Any) -> list[Tensor]:
        return [self.single(image)]
