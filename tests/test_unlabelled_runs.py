"""Runs on images without labels: their figures, and what the other commands do with them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from records import a_record
from test_bad_input import bench, done, refused

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.evaluate.targets import load_run
from idaa_lightly.bench.run.evaluation import NO_EPOCH, unlabelled_figures
from idaa_lightly.bench.run.health import warnings_of
from idaa_lightly.bench.run.setup import resolve
from idaa_lightly.evaluation.unlabelled import alignment, rankme, spread, uniformity
from idaa_lightly.loading import evaluation_batches
from idaa_lightly.outputs import embedding_of

FIGURES = ("rankme", "uniformity", "alignment", "embedding_spread")
OPTIONS = ["--aug", "none", "--backbone", "resnet9-w2", "--batch-size", "8", "--accelerator", "cpu"]


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "record.json").read_text())


@pytest.fixture(scope="session")
def runs(folder: Path, made_once: Callable[..., Path]) -> Path:
    """Two runs of two epochs on images without labels, `alone` and `evaluated`. Read-only: copy them."""

    def train(out: Path) -> None:
        options = ["--data", f"images:{folder}/train", *OPTIONS, "--epochs", 2]
        done(bench("run", *options, "--out", out / "alone"))
        done(bench("run", *options, "--eval-data", f"folder:{folder}", "--out", out / "evaluated"))

    return made_once("unlabelled", train)


def test_the_figures_are_those_of_the_embeddings(runs: Path) -> None:
    parts, module = load_run(runs / "alone")
    method = module.method.eval()
    with torch.no_grad():
        ((images, _),) = evaluation_batches(parts.data, parts.data.train)
        embeddings = embedding_of(method(images))
        pairs = [parts.views[NO_EPOCH, index][0] for index in range(36)]
        one, other = (embedding_of(method(torch.stack(view))) for view in zip(*pairs, strict=True))
    expected = rankme(embeddings), uniformity(embeddings), alignment(one, other), spread(embeddings)
    last = record_of(runs / "alone")["last"]
    for found in (last, unlabelled_figures(parts, method)):
        assert [found[name] for name in FIGURES] == pytest.approx(expected, rel=1e-4)


def test_without_labels_there_are_figures_but_no_accuracies(runs: Path) -> None:
    record = record_of(runs / "alone")
    for entry in (record["initial"], record["last"], *record["history"]):
        assert entry.keys() == {"epoch", *FIGURES}
    assert [entry["epoch"] for entry in record["history"]] == [0, 1, 2]
    assert "best" not in record
    assert (record["data"]["train"], record["data"]["test"], record["data"]["classes"]) == (36, 0, 0)
    with (runs / "alone/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["epochs_done"]]
    assert [float(row["rankme"]) for row in rows] == [entry["rankme"] for entry in record["history"]]


def test_evaluation_data_give_the_accuracies(runs: Path, folder: Path) -> None:
    alone, record = record_of(runs / "alone"), record_of(runs / "evaluated")
    assert record["config"]["eval_data"] == record["eval_data"]["name"] == f"folder:{folder}"
    assert (record["eval_data"]["train"], record["eval_data"]["test"], record["eval_data"]["classes"]) == (36, 12, 3)
    assert record["eval_data"]["normalize"] == record["data"]["normalize"] == alone["data"]["normalize"]
    assert {"knn", "linear", "knn_projection", "knn_validation", *FIGURES} <= record["last"].keys()
    assert [record["last"][name] for name in FIGURES] == [alone["last"][name] for name in FIGURES]
    with np.load(_embedded(runs / "evaluated")) as arrays:
        assert {name: len(arrays[name]) for name in arrays} == {
            "train_features": 36,
            "train_labels": 36,
            "test_features": 12,
            "test_labels": 12,
        }
    text = done(bench("knn", "features.npz", "--k", 36)).stdout
    assert f"{100 * record['last']['knn']:.2f} %" in text


def _embedded(run: Path) -> Path:
    done(bench("embed", run, "--out", "features.npz"))
    return Path("features.npz")


def test_features_of_images_without_labels(runs: Path) -> None:
    with np.load(_embedded(runs / "alone")) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"train_features": (36, 16)}
    refused(bench("knn", "features.npz"), 1, "features.npz is not a file of features", "expected train_features, ")


@pytest.mark.parametrize("command", ["knn", "linear", "finetune"])
def test_what_needs_labels_is_refused(runs: Path, command: str) -> None:
    words = (f"of {runs / 'alone'} has no labels, which this evaluation needs", "--eval-data of the run")
    refused(bench(command, runs / "alone"), 2, *words)
    assert not (runs / "alone" / f"{command}.json").exists()


def test_other_images_can_have_the_labels(runs: Path, folder: Path) -> None:
    assert "top-1" in done(bench("knn", runs / "alone", "--data", f"folder:{folder}")).stdout


@pytest.mark.slow
def test_identity_needs_no_labels(runs: Path) -> None:
    done(bench("identity", runs / "alone", "--aug", "clae", "--samples", 8, "--out", "identity"))
    assert json.loads(Path("identity/identity.json").read_text())["samples"] == 8


def test_a_dry_run_shows_the_evaluation_data() -> None:
    text = done(bench("run", "--data", "images:x", "--eval-data", "digits", *OPTIONS, "--dry-run")).stdout
    assert 'data = "images:x"\neval_data = "digits"\n' in text


def test_runs_without_labels_are_compared_by_their_figures(runs: Path) -> None:
    text = done(bench("compare", runs / "alone", "--format", "markdown")).stdout
    header, _, row = text.splitlines()[:3]
    assert header.startswith("| method | aug | seeds | RankMe | uniformity | alignment | spread | training, s |")
    assert f"| simclr | none | 1 | {record_of(runs / 'alone')['last']['rankme']:.2f} | " in row
    both = done(bench("compare", runs, "--format", "csv")).stdout.splitlines()
    assert len(both) == 3
    assert {"knn_mean", "rankme_mean", "embedding_spread_std"} <= set(both[0].split(","))


def test_accuracies_hide_the_figures_without_labels() -> None:
    for seed in range(2):
        Path(f"all/{seed}").mkdir(parents=True)
        record = a_record(config={"seed": seed}, last={"rankme": 3.0})
        Path(f"all/{seed}/record.json").write_text(json.dumps(record))
    text = done(bench("compare", "all", "--format", "markdown")).stdout
    assert "kNN" in text
    assert "RankMe" not in text


def test_the_report_draws_the_figures(runs: Path) -> None:
    done(bench("report", runs / "alone", "--out", "report.html"))
    text = Path("report.html").read_text()
    for title in ("RankMe", "uniformity", "alignment", "spread"):
        assert f"{title}, without labels" in text
    assert "kNN accuracy by" not in text


def test_a_collapse_without_labels_is_warned_of() -> None:
    history = [{"epoch": 0, "embedding_spread": 0.9}, {"epoch": 9, "embedding_spread": 0.02}]
    (warning,) = warnings_of(history, [], {})
    assert warning.startswith("the embeddings have collapsed: their standard deviation is 0.02 of 1/sqrt(D)")


def test_a_run_is_not_resumed_on_other_images(own_folder: Path) -> None:
    options = ["run", "--data", f"images:{own_folder}", *OPTIONS, "--epochs", 1, "--out", "out", "--resume"]
    done(bench(*options))
    first = record_of(Path("out"))
    Path("out/record.json").unlink()
    path = own_folder / "train/red/00.png"
    path.rename(path.with_name("99.png"))
    text = refused(bench(*options), 1, f"the images of images:{own_folder} changed after this run was begun")
    assert "restore what was there, or start anew with another --out" in text
    path.with_name("99.png").rename(path)
    done(bench(*options))
    assert record_of(Path("out"))["history"] == first["history"]


def test_a_run_without_labels_is_transferred_to_images_that_have_some(runs: Path, folder: Path) -> None:
    shutil.copytree(runs / "alone", "run")
    assert "run: here " in done(bench("transfer", "run", "--to", f"here=folder:{folder}")).stdout
    assert json.loads(Path("run/transfer.json").read_text())["results"]["here"]["data"]["train"] == 36


RECIPES = """\
[recipes.plain]
data = "images:x"
aug = "none"
epochs = 2
[recipes.clae]
base = "plain"
aug = "clae"
"""
TABLES = """\
[tables.own]
title = "Without labels"
seeds = 1
recipes = ["plain", "clae"]
reach = [50]
[tables.pairs]
title = "Differences"
seeds = 1
pairs = [["clae", "plain"]]
"""
QUESTIONS = """\
[one]
title = "Without labels?"
conclusion = "Yes."
tables = ["own", "pairs"]
contrasts = [["CLAE − SimCLR", "clae", "plain"]]
"""


@pytest.fixture
def two_methods(runs: Path) -> Path:
    """Records of two augmentations without labels, in the layout of benchmarks/."""
    for aug in ("none", "clae"):
        record = record_of(runs / "alone")
        record["config"] = resolve(RunConfig(data="images:x", epochs=2, aug=aug)).to_dict()
        place = Path("own/records") / ("plain" if aug == "none" else aug) / "seed-0"
        place.mkdir(parents=True)
        (place / "record.json").write_text(json.dumps(record))
    for name, text in {"recipes": RECIPES, "tables": TABLES, "questions": QUESTIONS}.items():
        Path(f"own/{name}.toml").write_text(text)
    return Path("own")


def test_tables_of_runs_without_labels(two_methods: Path, runs: Path) -> None:
    result = bench("table", "own", "pairs", "--render", "--folder", two_methods)
    assert result.exit_code == 0, result.output
    last = record_of(runs / "alone")["last"]
    assert f"| {last['rankme']:.2f} | {last['uniformity']:.2f} | " in result.stdout
    assert "clae − plain" in result.stdout


def test_runs_without_labels_have_no_differences_to_plot(two_methods: Path) -> None:
    refused(bench("compare", two_methods, "--plot", "x.svg"), 2, "no run with labels shares its seed and options")
