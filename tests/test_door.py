"""Input that is refused at the door: images that would fill the memory, seeds, paths and machines without space."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_bad_input import done, refused, run
from torch import Tensor, nn

from idaa_lightly.data import decode
from idaa_lightly.errors import DataError, ModelError, UsageError
from idaa_lightly.plugin import PairMethod
from idaa_lightly.training import SelfSupervised
from idaa_lightly_plugins.augmentations.none import NoAugmentation


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


# Losses without a gradient


def test_a_batch_of_one_is_refused(folder: Path) -> None:
    for options in ((), ("--dry-run",)):
        refused(
            run(folder, "--batch-size", 1, "--out", "out", *options), 2, "batch_size is 1", "expected int, 2 or more"
        )
    assert not Path("out").exists()


@pytest.mark.parametrize("aug", ["none", "clae"])
def test_a_gradient_of_zero_is_refused(folder: Path, aug: str) -> None:
    result = run(folder, "--set", "method.temperature=1e60", "--out", "out", aug=aug)
    refused(result, 2, "the gradient of the first step is exactly zero", "temperature too large")
    assert not Path("out/record.json").exists()


class Detached(PairMethod):
    """Method whose loss forgets its gradient."""

    def __init__(self, backbone: nn.Module, num_features: int) -> None:
        super().__init__(backbone, num_features)
        self.head, self.criterion = nn.Identity(), nn.MSELoss()

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        return super().loss(anchor, positive).detach()

    transform = optimizer = None  # type: ignore[assignment]


def test_a_loss_without_a_gradient_is_refused() -> None:
    method = Detached(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), 4)
    module = SelfSupervised(method, NoAugmentation(), epochs=1, steps_per_epoch=1, seed=0)
    with pytest.raises(ModelError, match=r"^the loss of Detached with \w+ has no gradient, but expected one"):
        module.losses(torch.rand(3, 3, 2, 2), torch.rand(3, 3, 2, 2))
