"""The record's schema, files of earlier versions, and random seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner
from records import RECORD, a_record

from idaa_lightly.bench.record import (
    code_commit,
    config_of,
    environment,
    images_seen,
    open_folder,
    pace_of,
    read_record,
)
from idaa_lightly.bench.schema import Record
from idaa_lightly.cli import main
from idaa_lightly.errors import FileFormatError
from idaa_lightly.seeding import STREAMS, seed_of, seeded

RECORDS = sorted((Path(__file__).parents[1] / "benchmarks" / "records").rglob("record.json"))


def written(record: Any) -> Path:
    Path("run").mkdir(exist_ok=True)
    Path("run/record.json").write_text(json.dumps(record))
    return Path("run")


def test_every_committed_record_is_read() -> None:
    assert len(RECORDS) > 90
    assert {read_record(path.parent)["schema"] for path in RECORDS} <= {1, 2, 3}
    assert all(config_of(read_record(path.parent)).seed >= 0 for path in RECORDS)


def test_fields_of_later_versions_do_no_harm() -> None:
    record = a_record(last={"rankme": 3.5}, colour="blue")
    assert read_record(written(record)) == record


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"last": {"knn": 1.5}}, "last.knn: Input should be less than or equal to 1"),
        ({"last": {"knn": float("nan")}}, "last.knn: "),
        ({"last": {"linear": "high"}}, "last.linear: Input should be a valid number"),
        ({"history": [{"epoch": 0, "knn": 0.1}, {"epoch": "x", "knn": 0.1}]}, "history.1.epoch: "),
        ({"time": None}, "time: "),
        ({"data": {"fingerprint": ["a"]}}, "data.fingerprint"),
        ({"config": 3}, "config: "),
    ],
)
def test_a_damaged_record_is_refused_with_the_place(change: dict[str, Any], text: str) -> None:
    with pytest.raises(FileFormatError, match=r"^run/record.json is damaged: ") as caught:
        read_record(written(a_record(**change)))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0, but expected int, 2 or more"),
        ({"epochs": 0}, "config.epochs: Input should be greater than or equal to 1"),
        ({"backbone": None}, "config.backbone: Input should be a valid string"),
        ({"lr": None}, "config: lr is null: leave it out"),
        ({"set": {"aug": {"eps": [1]}}}, "config.set.aug.eps"),
        ({"colour": "red"}, "'colour' is not a field of a run"),
        ({"seed": "x"}, "config.seed: Input should be a valid integer"),
    ],
)
def test_a_damaged_configuration_is_refused(config: dict[str, Any], text: str) -> None:
    with pytest.raises(FileFormatError, match=rf"^run/record.json is damaged: .*{text}"):
        read_record(written(a_record(config=config)))


def test_a_checkpoint_of_other_random_streams_is_not_resumed_but_read(folder: Path) -> None:
    options = ["run", "--aug", "none", "--data", f"folder:{folder}", "--backbone", "resnet9-w2", "--epochs", "2"]
    options += ["--batch-size", "12", "--accelerator", "cpu", "--out", "run"]
    assert CliRunner().invoke(main, options).exit_code == 0
    path = Path("run/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint.pop("idaa_lightly_streams") == STREAMS
    torch.save(checkpoint, path)
    Path("run/record.json").unlink()
    refused = CliRunner().invoke(main, [*options, "--resume"])
    assert refused.exit_code == 1
    assert "last.ckpt was written by a version of idaa-lightly with other random streams" in refused.stderr
    assert "start anew with another --out" in refused.stderr
    assert CliRunner().invoke(main, ["knn", str(path)]).exit_code == 0


def test_seeds_depend_on_purpose_and_key() -> None:
    keys = [("views", 0, 1), ("views", 1, 0), ("views", 0, 1, 0), ("views", "0", 1), ("noise", 0, 1), ("views", 0)]
    seeds = {seed_of(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert seed_of("views", 0, 1) == seed_of("views", 0, 1)


def test_a_seeded_block_leaves_the_global_streams_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded("views", 0, 1):
        first = torch.rand(2)
    assert torch.equal(torch.rand(3), expected)
    with seeded("views", 0, 1):
        assert torch.equal(torch.rand(2), first)


def test_the_commit_is_that_of_the_start() -> None:
    """A checkout that is updated during a training does not change the commit of its record."""
    code_commit.cache_clear()
    open_folder(Path("new"), config_of(RECORD), resume=False)
    assert code_commit.cache_info().misses == 1
    assert environment(torch.device("cpu"), 1)["git_commit"] == code_commit()
    assert code_commit.cache_info().misses == 1


@pytest.mark.parametrize("seconds", [0.0001, 0.2789, 12.345678])
def test_the_pace_gives_back_the_number_of_images(seconds: float) -> None:
    """Operations are counted by it: rounding both to a few digits made short runs wrong by percents."""
    assert images_seen(cast(Record, {"time": pace_of(128, seconds)})) == pytest.approx(128, rel=1e-12)
