"""Warnings about runs that end without an error and without success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from records import a_record
from test_bad_input import bench, done, run

from idaa_lightly.bench.run.health import warnings_of


def history(first: float, last: float, **at_end: float) -> list[dict[str, Any]]:
    return [{"epoch": 0, "knn": first}, {"epoch": 5, "knn": 0.0}, {"epoch": 9, "knn": last} | at_end]


def rows(*losses: float, name: str = "loss/clean_epoch") -> list[dict[str, Any]]:
    return [{"step": 0, "loss/clean": 9.0}, *({name: loss, "loss/total_epoch": -loss} for loss in losses)]


@pytest.mark.parametrize(
    ("entries", "logged", "words"),
    [
        (history(0.2, 0.5), rows(3.0, 4.0, 2.9), []),
        (history(0.2, 0.191), rows(3.0), []),
        (history(0.2, 0.5), rows(3.0, 2.0, 3.0), ["the loss did not fall: its mean was 3 in the first epoch and 3 in"]),
        (history(0.2, 0.5), rows(2.0, 3.0, name="x"), []),
        (history(0.2, 0.5), rows(3.0, 2.0, name="x"), ["the loss did not fall: its mean was -3 in"]),
        (history(0.2, 0.18), rows(3.0, 2.0), ["kNN had 20.00 % before it and has 18.00 % after it"]),
        (
            history(0.2, 0.5, embedding_spread=0.09),
            rows(3.0, 2.0),
            ["have collapsed: their standard deviation is 0.09"],
        ),
        (history(0.2, 0.5, embedding_spread=0.11), rows(3.0, 2.0), []),
        (history(0.2, 0.5), [*rows(3.0, 2.0), {"attack/fallbacks": 0.0}], []),
        (
            history(0.2, 0.5),
            [*rows(3.0, 2.0), {"attack/fallbacks": 2.0}, {"attack/fallbacks": 3.0}],
            ["the attack became NaN or infinite for 5 samples, counting repeats across epochs, which kept their"],
        ),
        (history(0.2, 0.5), [*rows(3.0, 2.0), {"attack/spread": 0.01}, {"attack/spread": 0.06}], []),
        (
            history(0.2, 0.5),
            [*rows(3.0, 2.0), {"attack/spread": 0.8}, {"attack/spread": 0.01}],
            ["the network's perturbations are all alike: their spread is 0.01, but expected 0.05 or more"],
        ),
    ],
)
def test_warnings(entries: list[dict[str, Any]], logged: list[dict[str, Any]], words: list[str]) -> None:
    found = warnings_of(entries, logged, {})
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))
    assert found == warnings_of(entries, [{key: str(value) for key, value in row.items()} for row in logged], {})


def test_a_vae_that_is_worse_than_the_mean_image() -> None:
    """The VAE may come from the cache, so every run that uses it warns."""
    cases: list[tuple[float, dict[str, float], list[str]]] = [
        (0.99, {}, []),
        (1.25, {}, ["the VAE's mean squared error is 1.25 after epoch 3, but the mean image has 1: fit"]),
        (0.99, {"variance": 0.98}, ["is 0.99 after epoch 3, but the mean image has 0.98: fit"]),
    ]
    for mse, variance, words in cases:
        found = warnings_of(history(0.2, 0.5), rows(3.0), {"vae": {"epochs": 3, "mse": mse, **variance}})
        assert len(found) == len(words)
        assert all(word in text for word, text in zip(words, found, strict=True))


def test_a_run_that_learned_nothing_says_so_everywhere(folder: Path) -> None:
    text = done(run(folder, "--lr", 1e6, "--epochs", 3, "--views", "loader", "--out", "out")).stdout
    warnings = json.loads(Path("out/record.json").read_text())["warnings"]
    assert any("the loss did not fall" in warning for warning in warnings)
    for warning in warnings:
        assert f"Warning: {warning}." in text
        assert f"Warning: out: {warning}." in done(bench("compare", "out", "--format", "markdown")).stdout
    assert f"│ warnings, see above       │ {len(warnings)} " in text


def test_warnings_name_their_run() -> None:
    for seed, warnings in ((1, []), (0, ["it rained"])):
        Path(f"all/run-{1 - seed}").mkdir(parents=True)
        content = json.dumps(a_record(config={"seed": seed}, warnings=warnings))
        Path(f"all/run-{1 - seed}/record.json").write_text(content)
    text = done(bench("compare", "all", "--format", "markdown")).stdout
    assert text.count("Warning: ") == 1
    assert "Warning: all/run-1: it rained." in text
    Path("all/run-0/record.json").write_text(json.dumps(a_record(config={"seed": 1}, warnings=["it rained: 3 mm"])))
    text = done(bench("compare", "all", "--format", "markdown")).stdout
    assert "Warning: 2 runs, such as all/run-1: it rained." in text
