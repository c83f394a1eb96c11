from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from idaa_lightly.cli import main
from idaa_lightly.errors import DataError
from idaa_lightly.evaluation.identity import batch_figures, identity, perturbation

ANGLES = torch.tensor([0.0, 60.0, 120.0])


def circle(degrees: torch.Tensor) -> torch.Tensor:
    return torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1)


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


def test_distances_by_hand() -> None:
    """The second view is 40° from its anchor and 20° from the third anchor, whose own view is only 10° away."""
    found = identity(3 * circle(ANGLES), 5 * circle(ANGLES + torch.tensor([10.0, 40.0, 10.0])))
    torch.testing.assert_close(found.positive, torch.tensor([chord(a) for a in (10, 40, 10)], dtype=torch.double))
    torch.testing.assert_close(found.negative, torch.tensor([chord(a) for a in (100, 50, 20)], dtype=torch.double))
    assert found.lost == 0
    assert found.hardness[2] == pytest.approx(chord(10) / chord(20))


def test_a_view_nearer_to_another_sample_has_lost_its_identity() -> None:
    found = identity(circle(ANGLES), circle(ANGLES + torch.tensor([0.0, 45.0, 0.0])))
    assert found.lost == 0  # The second anchor is 45° from its own view, 60° from the nearest other view.
    found = identity(circle(ANGLES), circle(ANGLES + torch.tensor([0.0, 70.0, 0.0])))
    assert found.lost == pytest.approx(1 / 3)


@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_neither_scale_nor_order_matters(seed: int, scale: float) -> None:
    anchors, views = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    first, second = identity(anchors, views), identity(scale * anchors[order], views[order])
    torch.testing.assert_close(first.positive[order], second.positive)
    torch.testing.assert_close(first.negative[order], second.negative)


def test_figures_of_a_batch_by_hand() -> None:
    """Three anchors are 60° apart. The second is 70° from its own view, but only 60° from the third view."""
    shift = torch.tensor([0.0, 70.0, 0.0])
    figures = batch_figures(2 * circle(ANGLES), circle(ANGLES + shift), temperature=0.5)
    assert figures["lost"] == pytest.approx(1 / 3)
    losses = []
    for row, anchor in enumerate((0, 60, 120)):
        logits = [2 * math.cos(math.radians(anchor - view)) for view in (0, 130, 120)]
        losses.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[row])
    assert figures["information"] == pytest.approx(math.log(3) - sum(losses) / 3, abs=1e-5)


def test_figures_of_a_batch_are_not_computed_in_half_precision() -> None:
    """Views at 0.5° from their samples, which are 1.5° apart. Half precision cannot tell these cosines."""
    anchors = circle(torch.arange(20) * 1.5)
    views = circle(torch.arange(20) * 1.5 + 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = batch_figures(anchors, views)
    assert found["lost"] == 0
    assert found["information"] == pytest.approx(batch_figures(anchors, views)["information"].item(), abs=1e-6)


def test_the_information_is_at_most_log_n() -> None:
    x = torch.eye(5)
    assert batch_figures(x, x, temperature=0.01)["information"] == pytest.approx(math.log(5))
    assert batch_figures(x, x.roll(1, 0))["lost"] == 1


def test_perturbations_are_in_pixels() -> None:
    x, views = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    views[0, 0, 0, 0], views[0, 2, 1, 1] = 3.0, -2.0
    found = perturbation(x, views, [0.5, 1.0, 0.25])
    assert found.l2 == pytest.approx(math.hypot(1.5, 0.5) / 2)  # The second image is unchanged.
    assert found.linf == pytest.approx(1.5 / 2)


@pytest.mark.parametrize(
    ("anchors", "views", "text"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 3), "shape (2, 3) and views (3, 3)"),
        (torch.zeros(1, 3), torch.zeros(1, 3), "N of 2 or more"),
        (torch.full((2, 3), math.nan), torch.zeros(2, 3), "NaN or infinity: the training diverged"),
    ],
)
def test_bad_embeddings(anchors: torch.Tensor, views: torch.Tensor, text: str) -> None:
    with pytest.raises(DataError) as caught:
        identity(anchors, views)
    assert text in str(caught.value)


TINY = [
    "--limit-train",
    "64",
    "--backbone",
    "resnet9-w4",
    "--batch-size",
    "32",
    "--accelerator",
    "cpu",
    "--epochs",
    "1",
]


def bench(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def test_the_study_of_a_run() -> None:
    """An attack with a huge radius loses identities. One with a radius of 0 loses none."""
    bench("run", "--aug", "clae", "--set", "aug.eps=0", *TINY, "--out", "still")
    bench("run", "--method", "byol", "--aug", "clae", "--set", "aug.eps=5", *TINY, "--out", "wild")
    figures: dict[str, Any] = {}
    for name in ("still", "wild"):
        count = {"still": 40, "wild": 33}[name]  # A batch has 32 samples, and BatchNorm refuses a batch of one.
        bench("identity", name, "--aug", "clae", "--samples", str(count))
        assert {path.name for path in Path(name, "identity").iterdir()} == {
            "identity.json", "identity.png", "density.png", "panels.png",
        }  # fmt: skip
        record = json.loads(Path(name, "identity/identity.json").read_text())
        assert record["samples"] == count
        assert {"versions", "device", "git_commit", "config"} <= record.keys()
        figures[name] = record["augmentations"]["clae"]
    assert (figures["still"]["lost"], figures["still"]["l2"]) == (0, 0)
    assert figures["wild"]["lost"] > 0.2
    assert figures["wild"]["linf"] > 0.5
    assert figures["wild"]["own_linf"] == pytest.approx(5)  # In normalised pixels.
    assert figures["wild"]["own_l2"] == pytest.approx(5 * (3 * 32 * 32) ** 0.5, rel=0.01)
    before = torch.load("wild/backbone.pt", weights_only=True)
    bench("identity", "wild", "--aug", "clae", "--out", "again")
    after = torch.load("wild/backbone.pt", weights_only=True)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for aug, text in (("none", "'none' does not search for views of images"), ("cla", "Did you mean 'clae'?")):
        assert text in bench("identity", "wild", "--aug", aug, code=2).output
    assert "expected a run directory" in bench("identity", "nowhere", code=1).output


def test_the_control_takes_the_vae_and_the_strength_of_the_run() -> None:
    options = ["--set", "aug.width=8", "--set", "aug.bottleneck_dim=16", "--set", "aug.eps=0"]
    bench("run", "--aug", "idaa", *options, *TINY, "--out", "run")
    bench("identity", "run", "--aug", "random,idaa", "--samples", "32")
    figures = json.loads(Path("run/identity/identity.json").read_text())["augmentations"]
    assert figures["random"]["linf"] < 1e-5
    assert figures["idaa"]["linf"] < 1e-5


def test_samples_that_coincide_have_a_finite_ratio() -> None:
    anchors = circle(torch.tensor([0.0, 0.0, 90.0]))
    found = identity(anchors, anchors.roll(1, 0))  # Each sample has the view of the one before it.
    assert found.negative[0] == 0
    assert found.ratio.isfinite().all()
