"""About how long a run will take, from a few timed images."""

from __future__ import annotations

import copy

import torch

from idaa_lightly.bench.prepare import Parts
from idaa_lightly.plugin import FitContext, shortest

SAMPLE = 16  # images


def estimate(parts: Parts, context: FitContext) -> float:
    """Seconds: making views, training, fitting, and about eleven evaluations. Right to a factor of about 1.5."""
    with torch.random.fork_rng(devices=[]):
        method = copy.deepcopy(parts.method).to(context.device)
        count = min(SAMPLE, len(parts.views))
        samples = [parts.views[0, index][0] for index in range(count)]
        views_time = shortest(lambda: [parts.views[0, index] for index in range(count)]) / count
        batches = [torch.stack(view).to(context.device) for view in zip(*samples, strict=True)]

        def step() -> None:
            method.loss(*[method.embed(batch) for batch in batches]).backward()
            if context.device.type == "cuda":
                torch.cuda.synchronize()

        step_time = shortest(step) / count
    per_image = step_time * parts.augmentation.relative_cost + views_time / max(1, parts.config.workers or 0)
    evaluations = 1 + min(parts.epochs, 10)
    evaluated = evaluations * (len(parts.data.train) + len(parts.data.test)) * step_time / 6
    return per_image * len(parts.views) * parts.epochs + evaluated + parts.augmentation.fit_seconds(context)


def in_words(seconds: float) -> str:
    """As people say it."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
