"""Estimates of how long a run takes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.cost import estimate, in_words
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import Parts, make_parts, read_data, resolve
from idaa_lightly.plugin import FitContext

CPU = torch.device("cpu")


def parts_of(aug: str, **options: Any) -> Parts:
    config = resolve(
        RunConfig(aug=aug, limit_train=64, backbone="resnet9-w4", epochs=5, batch_size=32, set={"aug": options})
    )
    return make_parts(config, make_augmentation(config), read_data(config))


@pytest.mark.parametrize("aug", ["none", "idaa", "metaug", "viewmaker"])
def test_an_estimate_leaves_no_trace(aug: str) -> None:
    parts = parts_of(aug, **({"width": 8, "bottleneck_dim": 8} if aug == "idaa" else {}))
    context = fit_context(parts, CPU)
    before = copy.deepcopy(parts.method.state_dict())
    random = torch.get_rng_state()
    found = estimate(parts, context)
    assert found.train > 0
    assert found.evaluate > 0
    assert (found.fit > 0) == (aug == "idaa")
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(parts.method.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in parts.method.parameters())
    assert not list(Path("cache").glob("*.pt"))


def test_what_is_cached_is_not_fitted_again() -> None:
    parts = parts_of("idaa", width=8, bottleneck_dim=8, vae_epochs=1)
    context = fit_context(parts, CPU)
    fit(parts.augmentation, context, parts.config.precision)
    assert estimate(parts, context).fit == 0


def test_fitting_is_scaled_from_one_batch_to_all_images_and_passes() -> None:
    parts = parts_of("none")
    seen: list[int] = []

    class Slow(type(parts.augmentation)):  # type: ignore[misc]
        def fit(self, context: FitContext) -> None:
            report: Callable[[str], None] = context.progress("slow", 7)
            for _ in range(7):
                for views in context.views(16):
                    seen.append(len(views))
                    time.sleep(0.05)
                report("")

        def loss(self, method: nn.Module) -> nn.Module:
            assert seen, "fit is called first"
            return super().loss(method)

    slow = Parts(**{**vars(parts), "augmentation": Slow()})
    found = estimate(slow, fit_context(slow, CPU))
    assert seen == [16]
    assert found.fit >= 7 * 64 / 16 * 0.05


def test_the_augmentations_own_work_is_timed() -> None:
    parts = parts_of("none")

    class Busy(type(parts.augmentation)):  # type: ignore[misc]
        def loss(self, method: nn.Module) -> nn.Module:
            return Waiting(super().loss(method))

    class Waiting(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, method: nn.Module, *views: Tensor) -> Any:
            time.sleep(0.5)
            return self.inner(method, *views)

    busy = Parts(**{**vars(parts), "augmentation": Busy()})
    sample = 32  # Images per timed step, which is one batch.
    assert estimate(busy, fit_context(busy, CPU)).train >= 0.5 / sample * 64 * 5


@pytest.mark.parametrize(("seconds", "words"), [(3, "10 s"), (84, "80 s"), (130, "2 min"), (3 * 3600, "3.0 h")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
