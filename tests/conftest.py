"""Fixtures for all tests: an image folder, two trained runs, and a separate working directory for each test."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks.arena import FORKS, HEAVY
from click.testing import CliRunner
from filelock import FileLock
from hypothesis import settings
from PIL import Image

from idaa_lightly.cli import main

settings.register_profile("ours", deadline=None, derandomize=True)  # No test depends on timing or on chance.
settings.load_profile("ours")

FORKS.set_forkserver_preload(list(HEAVY))  # `Command` starts commands in forks, so that imports are paid for once.

# A background job of a shell ignores Ctrl-C, and would pass that on to the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

COLOURS = {"blue": (40, 40, 210), "green": (40, 200, 40), "red": (220, 40, 40)}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let an idle worker take over tests from a busy one, because slow tests are next to each other."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a directory of its own, so that it writes neither runs nor caches elsewhere."""
    monkeypatch.setenv("IDAA_LIGHTLY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Return a function that writes noisy PNGs of `size` px, one colour per class and `counts` images per class."""

    def make(root: Path, size: int = 16, counts: dict[str, int] | None = None) -> Path:
        rng = np.random.default_rng(0)
        for split, count in (counts or {"train": 12, "test": 4}).items():
            for name, colour in COLOURS.items():
                (root / split / name).mkdir(parents=True)
                for index in range(count):
                    pixels = np.array(colour) + rng.integers(-30, 30, (size, size, 3))
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{index:02}.png")
        return root

    return make


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a function that fills a directory once per test session and shares it between pytest-xdist workers."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        place, unfinished = root / f"shared-{name}", root / f"unfinished-{name}"
        with FileLock(root / f"{name}.lock"):
            if not place.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                fill(unfinished)
                unfinished.rename(place)
        return place

    return make


@pytest.fixture(scope="session")
def folder(make_folder: Callable[..., Path], made_once: Callable[..., Path]) -> Path:
    """Folder of 36 training and 12 test images of 16 px in 3 classes. Read-only: change `own_folder` instead."""
    return made_once("images", make_folder)


@pytest.fixture(scope="session")
def trained(folder: Path, made_once: Callable[..., Path]) -> Path:
    """Two runs on `folder`, `seed-0` and `seed-1`: SimCLR without augmentation, one epoch. Read-only: copy them."""

    def train(out: Path) -> None:
        options = "--aug none --backbone resnet9-w2 --epochs 1 --batch-size 8 --accelerator cpu --seed 0 --seed 1"
        result = CliRunner().invoke(main, ["run", "--data", f"folder:{folder}", *options.split(), "--out", str(out)])
        assert result.exit_code == 0, result.output

    return made_once("runs", train)


@pytest.fixture
def own_folder(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """Copy of `folder` that a test may change."""
    return make_folder(tmp_path / "images")
