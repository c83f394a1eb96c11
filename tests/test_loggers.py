"""Loggers of a run: what they hold after it, and after it was resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attacks.arena import Command
from click.testing import CliRunner, Result

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.loggers import failures, make_loggers
from idaa_lightly.cli import main
from idaa_lightly.errors import FileFormatError

TINY = ["--backbone", "resnet9-w2", "--batch-size", "12", "--accelerator", "cpu", "--aug", "none", "--epochs", "2"]
TINY += ["--out", "run"]


def bench(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def rewind(*more: str) -> None:
    """Bring the run to the state after its first epoch."""
    Path("run/checkpoints/previous.ckpt").rename("run/checkpoints/last.ckpt")
    Path("run/record.json").unlink()


def test_tensorboard(folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = ["run", "--data", f"folder:{folder}", *TINY, "--logger", "csv", "--logger", "tensorboard"]
    bench(*options)
    rewind()
    assert "Resuming after epoch 1" in bench(*options, "--resume").output
    events = accumulator.EventAccumulator("run/tensorboard")
    events.Reload()
    record = json.loads(Path("run/record.json").read_text())
    logged = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert [step for step, _ in logged["loss/total_epoch"]] == [2, 5]
    assert [value for _, value in logged["evaluation/knn_validation"]] == pytest.approx(
        [entry["knn_validation"] for entry in record["history"]]
    )
    assert logged["final/linear"][0][1] == pytest.approx(record["last"]["linear"])
    assert set(events.Tags()["images"]) == {"views", "curves"}
    hyperparameters = Path("run/tensorboard/hparams.yaml").read_text()
    assert "backbone: resnet9-w2" in hyperparameters
    assert "method.temperature: 0.5" in hyperparameters


OFFLINE = {"WANDB_MODE": "offline", "MLFLOW_ALLOW_FILE_STORE": "true", "OMP_NUM_THREADS": "1"}
READ_WANDB = """
import json, struct, sys
from pathlib import Path
from wandb.proto import wandb_internal_pb2

BLOCK = 32768  # The file is a LevelDB log after 7 bytes: blocks of parts with checksum, length and type.
for path in sys.argv[1:]:
    content, place, whole = Path(path).read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole, place = whole + content[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            items = [*record.history.item, *record.summary.update, *record.config.update, *record.run.config.update]
            if record.WhichOneof("record_type") == "run":
                print(json.dumps({"id": record.run.run_id, "project": record.run.project}))
            print(json.dumps({item.key or "/".join(item.nested_key): item.value_json for item in items}))
"""


def run_forked(*arguments: str, **more: str) -> None:
    """Call the command line in a process of its own, because these packages keep threads and global state."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**OFFLINE, **more}.items():
            patch.setenv(name, value)
        fault = Command([*arguments], Path("log")).end()
    assert fault is None, fault


def run_apart(*arguments: str, **more: str) -> str:
    """Run Python in a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **OFFLINE, **more}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_wandb_offline(folder: Path) -> None:
    pytest.importorskip("wandb")
    options = ["run", "--data", f"folder:{folder}", *TINY, "--logger", "wandb"]
    run_forked(*options)
    identity = json.loads(Path("run/loggers.json").read_text())["wandb"]
    rewind()
    run_forked(*options, "--resume")
    assert json.loads(Path("run/loggers.json").read_text())["wandb"] == identity
    files = sorted(map(str, Path("run/wandb").glob("offline-run-*/*.wandb")))
    assert len(files) == 2, "one per process; `wandb sync` joins them by their identity"
    lines: list[dict[str, Any]] = [json.loads(line) for line in run_apart("-c", READ_WANDB, *files).splitlines()]
    runs = [line for line in lines if "id" in line]
    assert {(line["id"], line["project"]) for line in runs} == {(identity, "idaa-lightly")}
    record = json.loads(Path("run/record.json").read_text())
    found = {key: value for line in lines for key, value in line.items()}
    assert float(found["final/knn"]) == pytest.approx(record["last"]["knn"])
    assert json.loads(found["backbone"]) == "resnet9-w2"
    assert "loss/total_epoch" in found
    assert "views/filenames" in found


READ_MLFLOW = """
import json, sys, mlflow
client = mlflow.MlflowClient()
run = client.get_run(sys.argv[1])
steps = [metric.step for metric in client.get_metric_history(sys.argv[1], "loss/total_epoch")]
files = [item.path for item in client.list_artifacts(sys.argv[1])]
print(json.dumps([run.data.params, run.data.metrics, steps, files, run.info.status]))
"""


@pytest.mark.slow
def test_mlflow(folder: Path) -> None:
    pytest.importorskip("mlflow")
    address = {"MLFLOW_TRACKING_URI": f"file:{Path('mlruns').resolve()}"}
    options = ["run", "--data", f"folder:{folder}", *TINY, "--logger", "mlflow"]
    run_forked(*options, **address)
    rewind()
    run_forked(*options, "--resume", **address)
    identity = json.loads(Path("run/loggers.json").read_text())["mlflow"]
    parameters, metrics, steps, files, status = json.loads(run_apart("-c", READ_MLFLOW, identity, **address))
    record = json.loads(Path("run/record.json").read_text())
    assert (parameters["backbone"], status) == ("resnet9-w2", "FINISHED")
    assert metrics["final/knn"] == pytest.approx(record["last"]["knn"])
    assert sorted(steps) == [2, 5, 5], "the second epoch was trained twice"
    assert {"views.png", "curves.png"} <= set(files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logger", "variables"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": "nonsense://here"}),
        (
            "wandb",
            {"WANDB_MODE": "online", "WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": "home"},
        ),
    ],
)
def test_servers_that_refuse(folder: Path, logger: str, variables: dict[str, str]) -> None:
    pytest.importorskip(logger)
    options = [sys.executable, "-m", "idaa_lightly.cli", "run", "--data", f"folder:{folder}", *TINY, "--logger", logger]
    done = subprocess.run(
        options, env={**os.environ, **OFFLINE, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"Error: --logger {logger} does not work here (" in done.stderr
    assert "Traceback" not in done.stderr


FAILING = """
import mlflow
from idaa_lightly.bench.run.loggers import failures
from idaa_lightly.errors import MachineError
try:
    with failures():
        mlflow.MlflowClient().log_metric("0" * 32, "loss", 1.0)
except MachineError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_server_that_fails_during_a_run() -> None:
    pytest.importorskip("mlflow")
    text = run_apart("-c", FAILING, MLFLOW_TRACKING_URI=f"file:{Path('mlruns').resolve()}")
    assert text.startswith(
        "--logger mlflow failed (Run '" + "0" * 32 + "' not found): repeat the command with --resume"
    )


def test_other_exceptions_than_those_of_loggers_pass() -> None:
    with pytest.raises(ZeroDivisionError), failures():
        raise ZeroDivisionError


@pytest.mark.parametrize(("text", "words"), [("{", "is not the identities"), ('{"wandb": 3}', "is damaged: wandb: ")])
def test_damaged_identities_are_refused(text: str, words: str) -> None:
    Path("loggers.json").write_text(text)
    with pytest.raises(FileFormatError, match=f"loggers.json {words}"):
        make_loggers(RunConfig(), Path(), resume_at=1)


@pytest.mark.parametrize(
    ("loggers", "text"),
    [
        ("tensorbord", "logger is 'tensorbord', but expected some of csv, tensorboard, wandb, mlflow. Did you mean"),
        ("csv,wandb", 'wandb is not installed: pip install "idaa-lightly[wandb]" to use --logger wandb'),
    ],
)
def test_loggers_that_are_refused(loggers: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert text in bench("run", *TINY, "--logger", loggers, code=2).stderr
    assert not Path("run").exists()
