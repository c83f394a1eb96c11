"""Input that is refused at the door: images that would fill the memory, seeds, paths and machines without space."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from test_bad_input import done, refused, run

from idaa_lightly.data import decode
from idaa_lightly.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((1, 1_000_000), ["1 × 1000000 px, but expected an aspect ratio of 50 or less", "MAX_ASPECT=1000000"]),
        ((102, 2), ["102 × 2 px, but expected an aspect ratio of 50 or less", "IDAA_LIGHTLY_MAX_ASPECT=51"]),
        ((8_000, 8_000), ["8000 × 8000 px, but expected a number of pixels of 5e+07 or less", "MAX_PIXELS=64000000"]),
    ],
)
def test_small_files_of_huge_images_are_refused(own_folder: Path, size: tuple[int, int], words: list[str]) -> None:
    path = sorted((own_folder / "train/red").iterdir())[-1]
    Image.new("1", size).save(path)
    assert path.stat().st_size < 20_000
    for options in ((), ("--image-size", 16)):
        refused(run(own_folder, *options, "--out", "out"), 1, f"the image {path} has ", *words)
    assert not Path("out").exists()


def test_the_bounds_of_images_can_be_raised(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sorted((own_folder / "train/red").iterdir())[-1]
    Image.new("1", (102, 2)).save(path)
    monkeypatch.setenv("IDAA_LIGHTLY_MAX_ASPECT", "51")
    done(run(own_folder, "--image-size", 16, "--out", "out"))
    monkeypatch.setenv("IDAA_LIGHTLY_MAX_PIXELS", "203")
    with pytest.raises(DataError, match="number of pixels of 203 or less"):
        decode(path)
    monkeypatch.setenv("IDAA_LIGHTLY_MAX_PIXELS", "many")
    with pytest.raises(UsageError, match="IDAA_LIGHTLY_MAX_PIXELS is 'many', but expected float, above 0"):
        decode(path)
