"""Estimates of a run's duration, from a timed step, and counts of the operations of a training step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly.bench.run.evaluation import MEASURED
from idaa_lightly.bench.run.fitting import fit
from idaa_lightly.bench.run.setup import Parts
from idaa_lightly.bench.run.trainer import HALF
from idaa_lightly.plugin import Augmentation, FitContext
from idaa_lightly.training import SelfSupervised

SAMPLE = 16 * 32**2
"""Pixels of a timed step on the CPU, over all its images. The step has 16 images or more, unless a batch is smaller.

A part of the time may not depend on the number of images. So a whole batch is timed instead if it should take
less than `PATIENCE` seconds, in a training of at least `MANY` steps.
"""
PATIENCE, MANY = 10.0, 100


class Estimate(NamedTuple):
    """Estimated duration of a run in seconds, accurate to a factor of about 1.5.

    Attributes:
        fit: Seconds of fitting the augmentation. 0 if it needs no fitting or is cached.
        train: Seconds of training, including views.
        evaluate: Seconds of the evaluations before, during and after training.
    """

    fit: float
    train: float
    evaluate: float


def estimate(parts: Parts, context: FitContext, ranks: int = 1) -> Estimate:
    """Estimate the duration of a run from real training steps and, if needed, one real fitting step.

    The steps run on copies. They change neither the parts nor the random state.

    Args:
        parts: Parts of the run, before its augmentation is fitted.
        context: Context that the augmentation will be fitted with.
        ranks: Number of devices that share a batch.
    """
    device, epochs, labelled = context.device, parts.epochs, parts.labelled
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        batches = _sample(parts, device, ranks)
        count, images = len(batches[0]), len(parts.views)
        views = _seconds_of_views(parts, count, device) / count  # per image
        augmentation = copy.deepcopy(parts.augmentation)
        fitting = _fit_seconds(augmentation, context, parts.config.precision, views / len(batches))
        module = SelfSupervised(
            copy.deepcopy(parts.method), augmentation, epochs=epochs, steps_per_epoch=1, seed=parts.config.seed
        ).to(device)
        optimizer, half = module.configure_optimizers()["optimizer"], HALF.get(parts.config.precision)

        def step() -> None:
            module.method.before_step(0, *module.schedule)
            optimizer.zero_grad()
            with torch.autocast(device.type, half, enabled=half is not None):
                total = module.losses(*batches).total
            total.backward()
            optimizer.step()

        @torch.no_grad()
        def embed() -> None:
            module.method.backbone(batches[0])

        train, forward = (_shortest(function, device) / count for function in (step, embed))
        share = parts.batch_size // ranks
        if count < share and train * share < PATIENCE and parts.steps * epochs >= MANY:
            batches = _sample(parts, device, ranks, whole=True)
            train = _shortest(step, device) / len(batches[0])
    evaluations = 1 + min(epochs, 10)
    evaluated = evaluations * (min(images, MEASURED) + (len(labelled.train) + len(labelled.test) if labelled else 0))
    return Estimate(fitting, (train + views) * images * epochs / ranks, forward * evaluated)


def flops_per_image(parts: Parts, module: SelfSupervised, device: torch.device, ranks: int = 1) -> int:
    """Count the floating-point operations of a training step, divided by its images; see `step_flops`.

    Args:
        parts: Parts of the run.
        module: Module with the fitted augmentation.
        device: Device to run the step on.
        ranks: Number of devices that share a batch.
    """
    views = _sample(parts, device, ranks)
    return round(step_flops(module, views, device, parts.config.precision) / len(views[0]))


def step_flops(module: SelfSupervised, batch: Iterable[Tensor], device: torch.device, precision: str) -> int:
    """Count the floating-point operations of a training step.

    The count covers attack, forward and backward passes. A multiplication with its addition counts as two operations,
    as in `torch.utils.flop_counter`. The step runs on a copy.

    Args:
        module: Module with the fitted augmentation.
        batch: Arguments of the module's `losses`.
        device: Device to run the step on.
        precision: Precision of the run. It changes the memory that the step needs, and not the count.
    """
    half = HALF.get(precision)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        twin = copy.deepcopy(module).to(device)
        twin.method.before_step(0, *twin.schedule)
        with FlopCounterMode(display=False) as counter:
            with torch.autocast(device.type, half, enabled=half is not None):
                total = twin.losses(*(part.to(device) for part in batch)).total
            total.backward()
    count: int = counter.get_total_flops()
    return count


def in_words(seconds: float) -> str:
    """Return a duration for people to read, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class _Interrupted(Exception):
    """Raised to end a timed `Augmentation.fit` after one step."""


def _fit_seconds(augmentation: Augmentation, context: FitContext, precision: str, views: float) -> float:
    """Estimate the seconds of the whole fitting from one step on one batch.

    Args:
        augmentation: Copy to fit. Its `loss` can be called afterwards.
        context: Context of the real fitting.
        precision: Precision of the run.
        views: Seconds to make one view of one image.
    """
    batch: list[Tensor] = []
    passes, start, seconds = 0, 0.0, 0.0

    def one_batch(batch_size: int) -> Iterable[Tensor]:
        nonlocal start
        batch[:] = [next(iter(context.views(batch_size)))]
        start = time.perf_counter()
        return batch

    def progress(title: str, total: int) -> Callable[[str], None]:
        nonlocal passes
        passes = total

        def step(text: str) -> None:
            nonlocal seconds
            seconds = time.perf_counter() - start
            raise _Interrupted

        return step

    try:
        fit(augmentation, replace(context, views=one_batch, progress=progress), precision)
    except _Interrupted:
        return passes * context.images * (seconds / len(batch[0]) + views)
    return 0.0


def _seconds_of_views(parts: Parts, count: int, device: torch.device) -> float:
    """Return the seconds that it takes to make all views of `count` images."""
    if (make := parts.device_views) is not None and parts.data.train.pixels is not None:
        pixels = parts.data.train.pixels[:count].to(device)
        return _shortest(lambda: make(pixels, 0), device)
    return _shortest(lambda: [parts.views[0, index] for index in range(count)], device) / max(
        1, parts.config.workers or 0
    )


def _sample(parts: Parts, device: torch.device, ranks: int, *, whole: bool = False) -> list[Tensor]:
    """Return each view of some images, (N, C, H, W): a device's share of a batch, or less on the CPU unless `whole`."""
    share = parts.batch_size // ranks
    few = max(16, SAMPLE // parts.view_size**2) if device.type == "cpu" and not whole else share
    count = min(few, share, len(parts.views))
    samples = [parts.views[0, index][0] for index in range(count)]
    return [torch.stack(view).to(device) for view in zip(*samples, strict=True)]


def _shortest(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the faster of two calls. The first call in a process is often slow."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
