"""Damaged files of a run directory are refused with their path, whatever the damage. No other error may come out."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from attacks.mutations import damaged, edited, mutated
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import RECORD, a_record
from test_bad_input import arrays

from idaa_lightly.bench.compare.comparison import compare
from idaa_lightly.bench.compare.text import cells, to_csv, to_latex, to_markdown
from idaa_lightly.bench.evaluate.schema import Study
from idaa_lightly.bench.evaluate.store import read_results
from idaa_lightly.bench.record import config_of, read_record
from idaa_lightly.bench.report.curves import read_metrics
from idaa_lightly.bench.report.page import write_report
from idaa_lightly.bench.schema import read_json
from idaa_lightly.cli import main
from idaa_lightly.errors import FileFormatError, UsageError

WHOLE = a_record(
    config={
        "backbone": "resnet9-w2", "batch_size": 8, "lr": 0.1, "image_size": 32, "precision": "32-true",
        "set": {"method": {"temperature": 0.5, "jitter": 1}, "aug": {"random": True, "norm": "linf"}},
    },
    warnings=["the loss did not fall"],
    fitted={"vae": {"epochs": 3, "loss": 1.5}},
)  # fmt: skip
DEVICE = {name: RECORD[name] for name in ("versions", "device", "git_commit")}
KEPT = {"options": {"seed": 0}, "source": "abc", "seconds": 1.0, "protocol": "words", **DEVICE}
BEST = {"epoch": 3, "accuracy": 0.6, "selected_on": "the test images"}
VOTES = {"k": 20, "temperature": 0.1, "top1": 0.5, "top5": 0.9, "recall": None, "change": None}
RESULTS = {
    "linear.json": {"lbfgs": KEPT | {"accuracy": 0.5, "l2": 0.1}, "sgd": KEPT | {"accuracy": 0.5, "best": BEST}},
    "finetune.json": {"1%": KEPT | {"accuracy": 0.5, "images": 10}},
    "transfer.json": {"dtd": KEPT | {"accuracy": 0.5, "metric": "top1", "top1": 0.5, "mean_per_class": 0.4}},
    "knn.json": {
        "knn": KEPT
        | {
            "options": {"k": [20, 5], "temperature": [0.1]},
            "bank": 9,
            "queries": 5,
            "backend": "torch",
            "accuracies": [VOTES | {"k": 5}, VOTES | {"k": 9}],
        }
    },
}
STUDY = {
    "config": RECORD["config"],
    "samples": 9,
    "augmentations": {"clae": {"lost": 0.1, "hardness": [0.1, 0.2, 0.3, 0.4, 1.5], "l2": 0.1, "linf": 0.2}},
    **DEVICE,
}
RANDOMS = st.randoms(use_true_random=False)


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@contextlib.contextmanager
def refusal_of(path: Path | str) -> Any:
    """Accept that the block works, or that it is refused with this path."""
    try:
        yield
    except (FileFormatError, UsageError) as error:
        if str(path) not in str(error):
            raise AssertionError("the message does not name the path") from error


pytestmark = pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
FUZZ = settings(max_examples=150, suppress_health_check=list(HealthCheck))


@settings(FUZZ, max_examples=60)
@given(RANDOMS)
def test_records(random: Random) -> None:
    path = written(Path("runs/a/record.json"), mutated(random, WHOLE))
    written(Path("runs/b/record.json"), WHOLE | {"config": WHOLE["config"] | {"seed": 1}})
    with refusal_of(path):
        config_of(read_record(path.parent)).key()
    with refusal_of("runs/a"):
        comparison = compare([Path("runs")])
        for write in (cells, to_csv, to_latex, to_markdown):
            write(comparison)
        json.dumps(comparison.rows)


@pytest.mark.slow
@settings(FUZZ, max_examples=25)
@given(RANDOMS)
def test_reports_of_records(random: Random) -> None:
    path = written(Path("runs/a/record.json"), mutated(random, WHOLE))
    written(Path("runs/b/record.json"), WHOLE | {"config": WHOLE["config"] | {"seed": 1}})
    with refusal_of(path.parent):
        write_report([Path("runs")], Path("report.html"))


@pytest.mark.parametrize("name", RESULTS)
@settings(FUZZ, max_examples=60)
@given(random=RANDOMS)
def test_results(name: str, random: Random) -> None:
    path = written(Path(name), mutated(random, {"schema": 1, "results": RESULTS[name]}))
    with refusal_of(path):
        for entry in read_results(path).values():
            assert entry["accuracy" if name != "knn.json" else "seconds"] >= 0


@settings(FUZZ, max_examples=60)
@given(RANDOMS)
def test_studies(random: Random) -> None:
    path = written(Path("identity.json"), mutated(random, STUDY))
    with refusal_of(path):
        for part in read_json(path, Study, "an identity study")["augmentations"].values():
            assert len([100 * value for value in part["hardness"]]) == 5


METRICS = (
    "step,epoch,loss/total,loss/total_epoch,identity/second_lost\n0,0,3.5,,0.5\n1,0,3.4,3.45,\n2,1,3.3,,\n3,1,3,3.1,\n"
)


def edited_log(random: Random) -> Path:
    """Write a run whose metrics.csv has text replaced at some places."""
    written(Path("runs/a/record.json"), WHOLE)
    Path("runs/a/metrics.csv").write_bytes(edited(random, METRICS).encode("utf-8", "surrogatepass"))
    return Path("runs/a/metrics.csv")


@settings(FUZZ, max_examples=200)
@given(RANDOMS)
def test_metrics(random: Random) -> None:
    path = edited_log(random)
    with refusal_of(path):
        assert "loss/total" in read_metrics(path) or path.read_bytes() != METRICS.encode()


@pytest.mark.slow
@settings(FUZZ, max_examples=15)
@given(RANDOMS)
def test_reports_of_metrics(random: Random) -> None:
    edited_log(random)
    for line in write_report([Path("runs")], Path("report.html")):
        assert "runs/a" in line or "seed 0" in line or "No run" in line


@pytest.mark.slow
@settings(FUZZ, max_examples=60)
@given(st.data())
def test_feature_files(data: st.DataObject) -> None:
    shapes = st.sampled_from([(), (0,), (9,), (5,), (9, 4), (9, 3), (0, 4), (9, 0), (9, 2, 2), (5, 4)])
    kinds = st.sampled_from(["f4", "f8", "f2", "i8", "u1", "c8", "?", "U3", "M8[s]", "m8[s]", "V2", ">f4", ">i8"])
    names = ["train_features", "train_labels", "test_features", "test_labels"]
    changed = {
        name: np.full(data.draw(shapes), data.draw(st.sampled_from([0, 1, 7]))).astype(data.draw(kinds))
        for name in data.draw(st.lists(st.sampled_from(names), max_size=2))
    }
    for name in data.draw(st.lists(st.sampled_from(names), max_size=1)):
        if name not in changed:
            values = np.arange(36.0).reshape(9, 4) if name.endswith("features") else np.arange(9)
            changed[name] = (values + 1) * data.draw(st.sampled_from([-1, 1e300, np.nan, np.inf, 2**40, 1e-300]))
    arrays(**changed)(Path("x.npz"))
    if data.draw(st.booleans()):
        Path("x.npz").write_bytes(damaged(data.draw(RANDOMS), Path("x.npz").read_bytes())[1])
    for command in ("knn", "linear"):
        result = CliRunner().invoke(main, [command, "x.npz"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"{command} ended in a traceback") from result.exception
        assert result.exit_code == 0 or result.stderr.startswith("Error: ")
