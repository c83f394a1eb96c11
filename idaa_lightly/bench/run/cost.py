"""About how long a run will take, from a few timed images, and how many operations."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly.bench.run.setup import Parts
from idaa_lightly.plugin import FitContext, shortest
from idaa_lightly.training import SelfSupervised, to_fast_layout

SAMPLE = 16 * 32**2  # pixels; at least 16 images


def estimate(parts: Parts, context: FitContext) -> float:
    """Seconds: making views, training, fitting, and about eleven evaluations. Right to a factor of about 1.5."""
    with torch.random.fork_rng(devices=[]):
        method = copy.deepcopy(parts.method).to(context.device)
        to_fast_layout(method)
        batches = _sample(parts, context.device)
        count = len(batches[0])
        views_time = shortest(lambda: [parts.views[0, index] for index in range(count)]) / max(
            1, parts.config.workers or 0
        )
        if (make := parts.device_views) is not None and parts.data.train.pixels is not None:
            pixels = parts.data.train.pixels[:count].to(context.device)
            views_time = shortest(lambda: make(pixels, 0))

        def step() -> None:
            method.loss(*[method.embed(batch) for batch in batches]).backward()
            if context.device.type == "cuda":
                torch.cuda.synchronize()

        step_time = shortest(step) / count
    per_image = step_time * parts.augmentation.relative_cost + views_time / count
    evaluations = 1 + min(parts.epochs, 10)
    evaluated = evaluations * (len(parts.data.train) + len(parts.data.test)) * step_time / 6
    return per_image * len(parts.views) * parts.epochs + evaluated + parts.augmentation.fit_seconds(context)


def flops_per_image(parts: Parts, module: SelfSupervised, device: torch.device) -> int:
    """Floating-point operations of a training step, divided by its images: attack, forward and backward passes.

    A multiplication with its addition counts as two, as in `torch.utils.flop_counter`. The step is done by a copy.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        twin, batches = copy.deepcopy(module).to(device), _sample(parts, device)
        twin.method.before_step(0, *twin.schedule)
        with FlopCounterMode(display=False) as counter:
            twin.objective(twin.method, *batches).total.backward()
    total: int = counter.get_total_flops()
    return round(total / len(batches[0]))


def _sample(parts: Parts, device: torch.device) -> list[Tensor]:
    """A few images' views, (N, C, H, W) each."""
    count = min(max(16, SAMPLE // parts.data.image_size**2), len(parts.views))
    samples = [parts.views[0, index][0] for index in range(count)]
    return [torch.stack(view).to(device) for view in zip(*samples, strict=True)]


def in_words(seconds: float) -> str:
    """As people say it."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
