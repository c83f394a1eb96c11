"""Estimates of how long a run takes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.cost import estimate, flops_per_image, in_words
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import Parts, make_parts, read_data, resolve
from idaa_lightly.plugin import FitContext
from idaa_lightly.training import SelfSupervised

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


def test_operations_are_counted_on_the_share_of_a_device() -> None:
    """A matrix of all pairs costs less for each image of a smaller batch. 32 images on 4 devices are 8 each."""
    parts = parts_of("none")
    fit(parts.augmentation, fit_context(parts, CPU), parts.config.precision)
    module = SelfSupervised(parts.method, parts.augmentation, epochs=1, steps_per_epoch=2, seed=0)
    eight = replace(parts, batch_size=8)
    assert flops_per_image(parts, module, CPU, ranks=4) == flops_per_image(eight, module, CPU)
    assert flops_per_image(eight, module, CPU) < flops_per_image(parts, module, CPU)


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


@pytest.mark.parametrize(
    ("image_size", "epochs", "each", "sizes"),
    [
        (8, 2, 0.025, [64, 64]),
        (32, 2, 0.025, [16, 16]),
        (32, 5, 0.025, [16, 16, 64, 64]),  # 110 steps
        (32, 5, 0.25, [16, 16]),  # A whole batch would take 17 s.
    ],
)
def test_a_whole_batch_is_timed_if_the_run_is_long(
    image_size: int, epochs: int, each: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss takes 0.3 s, and some time for each image. Nothing else takes time on this clock."""
    config = resolve(RunConfig(aug="none", backbone="resnet9-w4", image_size=image_size, epochs=epochs, batch_size=64))
    parts = make_parts(config, make_augmentation(config), read_data(config))
    now, seen = [0.0], []

    class Busy(type(parts.augmentation)):  # type: ignore[misc]
        def loss(self, method: nn.Module) -> nn.Module:
            return Waiting(super().loss(method))

    class Waiting(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, method: nn.Module, *views: Tensor) -> Any:
            seen.append(len(views[0]))
            now[0] += 0.3 + each * len(views[0])
            return self.inner(method, *views)

    busy = Parts(**{**vars(parts), "augmentation": Busy()})
    monkeypatch.setattr("idaa_lightly.bench.run.cost.time", SimpleNamespace(perf_counter=lambda: now[0]))
    found = estimate(busy, fit_context(busy, CPU))
    assert seen == sizes
    assert found.train == pytest.approx((0.3 / sizes[-1] + each) * len(parts.views) * epochs)


@pytest.mark.parametrize(("seconds", "words"), [(3, "10 s"), (84, "80 s"), (130, "2 min"), (3 * 3600, "3.0 h")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
