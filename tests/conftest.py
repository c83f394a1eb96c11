"""What all tests share: an image folder, and a place of their own to write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("ours", deadline=None, derandomize=True)  # no timing decides a test
settings.load_profile("ours")

COLOURS = {"blue": (40, 40, 210), "green": (40, 200, 40), "red": (220, 40, 40)}


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes outside its folder, neither runs nor caches."""
    monkeypatch.setenv("IDAA_LIGHTLY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Writes PNGs of `size` px, `counts` of them a class, into a folder a split; a class is a colour with noise."""

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
def folder(make_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 training and 12 test images of 16 px in 3 classes. Not to be changed: the `own_folder` of a test is."""
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def own_folder(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of `folder` for one test, to be damaged."""
    return make_folder(tmp_path / "images")
