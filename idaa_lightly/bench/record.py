"""Record of a finished run, RUN/record.json: its reader, its writer, and the check of a run directory."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from idaa_lightly.bench.config import RunConfig, check, load_toml, read_toml
from idaa_lightly.bench.ranks import is_first_process
from idaa_lightly.bench.schema import Record, read_json
from idaa_lightly.errors import FileFormatError, RunFolderError, UsageError
from idaa_lightly.files import atomic_write, claim, clear_leftovers, is_temporary, require_file
from idaa_lightly.registry import sources

log = logging.getLogger(__name__)
SCHEMA = 3
"""Version of records and checkpoints. It is raised when random streams change, because a resumed run would differ."""
READABLE = (1, 2, 3)
PACKAGES = (
    "idaa-lightly", "torch", "torchvision", "lightly", "pytorch-lightning", "timm", "kornia", "numpy", "pillow",
    "faiss-cpu", "faiss-gpu", "scikit-learn", "torchmetrics", "pycocotools",
)  # fmt: skip


def open_folder(folder: Path, config: RunConfig, *, resume: bool) -> Record | None:
    """Check that this configuration can be run in a directory, and delete temporary files of killed processes.

    `idaa_lightly.bench.run.lengthen` decides later whether a run may be resumed with another number of epochs.

    Args:
        folder: The run directory. It may be missing or empty.
        config: Resolved configuration of the run.
        resume: Accept a directory that holds the same run, with the same or another number of epochs.

    Returns:
        The record if the run is finished, else None.

    Raises:
        RunFolderError: The directory holds something else, or it holds such a run and `resume` is False.
    """
    code_commit()  # Cached now, so that the record names this commit even if the checkout changes in training.
    taken = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if taken:
        raise RunFolderError(f"{taken} is not a directory: choose another --out")
    for place in (folder, folder / "checkpoints"):
        clear_leftovers(place)
    if not folder.exists() or all(is_temporary(path) for path in folder.iterdir()):
        return None
    require_file(folder / "config.toml", "the configuration of a run")
    if not (folder / "config.toml").exists():
        raise RunFolderError(f"{folder} holds files that are not a run: choose another --out")
    kind = type(config)
    both = kind(**read_toml(folder / "config.toml", kind)), config
    there, wanted = (part.canonical().flat() for part in both)
    changed = sorted(name for name in there | wanted if there.get(name) != wanted.get(name))
    length = changed == ["epochs"]
    if changed and not (length and resume):
        differences = ", ".join(f"{name} {there.get(name)} there, {wanted.get(name)} here" for name in changed)
        longer = length and kind is RunConfig  # The schedules of others depend on the number of epochs.
        remedy = "add --resume to go on to that number of epochs, or choose" if longer else "choose"
        raise RunFolderError(f"{folder} holds another run ({differences}): {remedy} another --out")
    record = finished(folder, config)
    if not resume:
        state = "is finished: see its record.json" if record else "was interrupted: add --resume to continue it"
        raise RunFolderError(f"{folder} already holds this run, which {state}, or choose another --out")
    return record


def finished(folder: Path, config: RunConfig) -> Record | None:
    """Return the record of a run that has trained as many epochs as asked for. None if there is no such record.

    Args:
        folder: The run directory. It may be missing.
        config: Resolved configuration of the run.
    """
    record = read_record(folder, type(config)) if (folder / "record.json").exists() else None
    return record if record and record["config"]["epochs"] == config.epochs else None


def run_in(folder: Path, config: RunConfig, resume: bool, work: Callable[[], Record | None]) -> Record | None:
    """Run a configuration in its directory, which is locked for this process. A finished run is left unchanged.

    Args:
        folder: The run directory.
        config: Resolved configuration of the run.
        resume: See `open_folder`.
        work: Function that runs it and returns the record. With several processes (DDP), only the first process
            returns it. The others return None.

    Raises:
        RunFolderError: The directory holds something else, another process is using it, or it holds such a run and
            `resume` is False.
    """
    if not is_first_process():  # The first process has already checked the directory.
        return None if finished(folder, config) else work()
    open_folder(folder, config, resume=resume)  # Checked before locking, so that a refusal leaves no lock file behind.
    with claim(folder):
        record = open_folder(folder, config, resume=resume)
        if record is not None:
            log.info(f"{folder} is finished already.")
            return record
        return work()


def write_json(path: Path, content: Any) -> None:
    """Write JSON values to a file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path, kind: type[RunConfig] = RunConfig) -> Record:
    """Read the record of a finished run.

    Args:
        folder: The run directory.
        kind: Class of its configuration.

    Raises:
        FileFormatError: The record is missing or damaged, or its schema is not one of `READABLE`.
    """
    path = folder / "record.json"
    record: Record = read_json(path, Record, "the record of a finished run", READABLE)
    config, epochs = record["config"], [entry["epoch"] for entry in record["history"]]
    try:
        check(config, kind)
        if empty := [name for name, value in config.items() if value is None]:
            raise UsageError(f"{empty[0]} is null: leave it out")
    except UsageError as error:
        raise FileFormatError(f"{path} is damaged: config: {error}") from error
    if epochs != sorted(set(epochs)) or epochs[0] != 0 or epochs[-1] == 0:
        raise FileFormatError(
            f"{path} is damaged: history has the epochs {epochs}, but expected 0 and later ones in order"
        )
    return record


OWN_FIELDS = ("labels", "init")
"""Fields that only the configurations of `idaa-bench semi` and `idaa-bench detect` have."""


def finished_runs(folder: Path, kind: type[RunConfig] = RunConfig) -> list[Path]:
    """Return the finished runs of one command below a directory, sorted. Runs of other commands are left out.

    Args:
        folder: Run directory, or directory with run directories at any depth.
        kind: Class of their configurations.
    """

    def config(path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8"))["config"]

    return sorted(path.parent for path in folder.rglob("record.json") if _is_of(kind, path, config))


def no_run(target: Path, command: str = "idaa-bench run") -> FileFormatError:
    """Return the error for a target that holds no finished run of a command."""
    return FileFormatError(f"{target} holds no finished run of {command}: expected one, or a folder of runs")


def unfinished_runs(folder: Path, kind: type[RunConfig] = RunConfig) -> list[Path]:
    """Return the run directories of one command below a directory that hold no record; see `finished_runs`."""
    begun = (path for path in folder.rglob("config.toml") if not path.with_name("record.json").exists())
    return sorted(path.parent for path in begun if _is_of(kind, path, load_toml))


def _is_of(kind: type[RunConfig], path: Path, config_in: Callable[[Path], Any]) -> bool:
    """Return True if a file holds a configuration of this class, or is damaged, which its reader then reports."""
    try:
        config = config_in(path)
        return all((field in config) == (field in kind.names()) for field in OWN_FIELDS)
    except (OSError, ValueError, LookupError, TypeError, FileFormatError):
        return True


def learning_curve(record: Record) -> list[tuple[int, float]]:
    """Return (epoch, kNN accuracy) of the evaluations during training.

    Accuracies are on the validation images. Records of schema 2 and older have them on the test images. Without labels,
    there are none.
    """
    found = [(entry["epoch"], entry.get("knn_validation", entry.get("knn"))) for entry in record["history"]]
    return [(epoch, accuracy) for epoch, accuracy in found if accuracy is not None]


def pace_of(images: int, seconds: float) -> dict[str, float]:
    """Return `train_s` and `images_per_s` of a record, whose product is the number of images.

    Args:
        images: Images processed during training, counting repeats across epochs.
        seconds: Seconds of training. They are rounded to hundredths, and the pace is that of the rounded ones.
    """
    rounded = max(0.01, round(seconds, 2))
    return {"train_s": rounded, "images_per_s": images / rounded}


def images_seen(record: Record) -> float:
    """Return the number of images processed during training, counting repeats across epochs."""
    return float(record["time"]["images_per_s"] * record["time"]["train_s"])


def training_flops(record: Record) -> float:
    """Return the operations of the training; 0 if they are not recorded."""
    return (record["time"]["flops_per_image"] or 0) * images_seen(record)


def fit_flops(record: Record) -> float:
    """Return the operations of fitting the augmentation, such as IDAA's VAE; 0 if they are not recorded."""
    return record["time"].get("fit_flops", 0.0)


def accuracy_at(record: Record, share: float) -> float:
    """Return kNN accuracy after this share of the training, linear between evaluations."""
    epochs, accuracies = zip(*learning_curve(record), strict=True)
    return float(np.interp(share * record["config"]["epochs"], epochs, accuracies))


def share_to(record: Record, accuracy: float) -> float | None:
    """Return the share of the training until kNN first reached this accuracy. None if it never did."""
    before, low = 0.0, 1.0
    for epoch, value in learning_curve(record):
        share = epoch / record["config"]["epochs"]
        if value >= accuracy:
            return share if low >= value else before + (share - before) * (accuracy - low) / (value - low)
        before, low = share, value
    return None


def config_of(record: Record) -> RunConfig:
    """Return the configuration in a record."""
    return RunConfig(**cast(dict[str, Any], record["config"]))


def environment(device: torch.device, count: int) -> dict[str, Any]:
    """Return `versions`, `device` and `git_commit` for a record.

    Args:
        device: Device of the run.
        count: Number of such devices.
    """
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    versions |= {f"plugin {name}": f"sha256 {digest}" for name, digest in sources().items()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "versions": versions,
        "device": {
            "type": device.type,
            "name": name,
            "count": count,
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
        "git_commit": code_commit(),
    }


def _cpu_name() -> str:
    """Return a name such as "AMD EPYC, AVX2", or the architecture if Linux gives no model name."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{models[0] if models else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


@cache
def code_commit() -> str | None:
    """Return the last commit that changed the code in this checkout, with "+" for uncommitted changes.

    It is read once per process, because a process keeps running the code that it started with.
    """
    here = Path(__file__).resolve()
    try:
        git = ["git", "-C", str(here.parent)]
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True)
        # Only commits to the code count, since records and pages change no result.
        code = [str(here.parents[1]), str(here.parents[2] / "plugins")]
        last = subprocess.run(
            [*git, "log", "-1", "--format=%H", "--", *code], check=True, capture_output=True, text=True
        )
        changed = subprocess.run([*git, "status", "--porcelain", "-uno", "--", *code], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return last.stdout.strip() + ("+" if changed.stdout else "")
