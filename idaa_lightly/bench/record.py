"""Record of a finished run, RUN/record.json: its schema, its reader, and the check of a run directory."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from idaa_lightly.bench.config import RunConfig, check, read_toml
from idaa_lightly.errors import FileFormatError, RunFolderError, UsageError
from idaa_lightly.files import atomic_write, clear_leftovers, is_temporary, require_file
from idaa_lightly.options import Fraction, NonNegative, NonNegativeInt

SCHEMA = 2
"""Version of records and checkpoints. It is raised when random streams change, because a resumed run would differ."""
READABLE = (1, 2)
PACKAGES = (
    "idaa-lightly", "torch", "torchvision", "lightly", "pytorch-lightning", "timm", "kornia", "numpy", "pillow",
    "faiss-cpu", "faiss-gpu", "scikit-learn",
)  # fmt: skip


class _Open(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]


class Evaluated(_Open):
    """Top-1 accuracy in [0, 1] on all test images after an epoch.

    Attributes:
        epoch: Number of finished epochs.
        knn: Accuracy of kNN on backbone features.
    """

    epoch: NonNegativeInt
    knn: Fraction


class AtEnd(Evaluated):
    """Top-1 accuracies in [0, 1] before or after training.

    Attributes:
        knn_projection: Accuracy of kNN on the method's embeddings: projections, or predictions if there are any.
        linear: Accuracy of a linear probe on backbone features.
        linear_l2: L2 strength of the probe, chosen on a tenth of the training images.
        knn_pixels: Accuracy of kNN on raw pixels. Present only before training, for images of 64 px or less.
    """

    knn_projection: Fraction
    linear: Fraction
    linear_l2: NotRequired[NonNegative]
    knn_pixels: NotRequired[Fraction]


class Best(_Open):
    """Best epoch by kNN. Its accuracy is optimistic, because the epoch is selected on the test images.

    Attributes:
        epoch: Number of finished epochs.
        knn: Accuracy of kNN on backbone features.
        selected_on: Images that the epoch was selected on, in words.
    """

    epoch: NonNegativeInt
    knn: Fraction
    selected_on: str


class Protocol(_Open):
    """Protocol of the evaluations. Further keys describe the features and the linear probe in words.

    Attributes:
        knn_k: Neighbours that voted.
        knn_temperature: Temperature of the votes.
        knn_backend: Library that searched, with its version.
    """

    knn_k: Annotated[int, Ge(1)]
    knn_temperature: float
    knn_backend: str


class Time(_Open):
    """Cost of the run.

    Attributes:
        train_s: Seconds of training without evaluation, summed over the processes of a resumed run.
        images_per_s: Training images per second of `train_s`.
        flops_per_image: Floating-point operations of one training step with its attack, divided by its images.
        wall_s: Wall time of the last process, in seconds.
        cpu_s: CPU time of the last process, in seconds.
        resumed_at_epoch: Epoch of the checkpoint that the last process resumed, from 0. None if it started anew.
    """

    train_s: NonNegative
    images_per_s: NonNegative
    flops_per_image: NonNegativeInt | None
    wall_s: NonNegative
    cpu_s: NonNegative
    resumed_at_epoch: NonNegativeInt | None


class Data(_Open):
    """Facts about the data set.

    Attributes:
        name: Name that was asked for, such as "cifar10".
        train: Number of training images.
        test: Number of test images.
        classes: Number of classes.
        image_size: Height and width of a view, in pixels.
        normalize: Mean and standard deviation per channel.
        fingerprint: Hashes of the training images and of the test images.
        notes: Sentences on how the images were converted.
    """

    name: str
    train: NonNegativeInt
    test: NonNegativeInt
    classes: NonNegativeInt
    image_size: NonNegativeInt
    normalize: dict[str, list[float]]
    fingerprint: tuple[str, str]
    notes: list[str]


class Device(_Open):
    """Device that the run trained on.

    Attributes:
        type: Type of the torch device, such as "cuda".
        name: Name of the GPU or of the CPU.
        count: Number of devices.
        cpus: Number of CPUs of the machine.
        torch_threads: Threads that torch uses on the CPU.
    """

    type: str
    name: str
    count: NonNegativeInt
    cpus: NonNegativeInt | None
    torch_threads: NonNegativeInt


class Record(_Open):
    """Content of record.json.

    Attributes:
        schema: Version of the record, `SCHEMA`.
        config: Resolved configuration, as in config.toml.
        initial: Accuracies of the untrained network.
        last: Accuracies after the last epoch. Cite these.
        best: Best epoch, selected on the test images.
        history: Accuracies during training, from epoch 0.
        evaluation: Protocol of the evaluations.
        time: Cost of the run.
        fitted: Facts about the fitting before training. For IDAA: {vae: {epochs, seconds, loss, mse, kl}}.
        data: Facts about the data set.
        versions: Versions of Python and of the packages that results depend on.
        device: Device that the run trained on.
        git_commit: Commit of idaa-lightly's checkout, with "+" for uncommitted changes. None outside a checkout.
    """

    schema: int
    config: dict[str, Any]
    initial: AtEnd
    last: AtEnd
    best: Best
    history: list[Evaluated]
    evaluation: Protocol
    time: Time
    fitted: dict[str, Any]
    data: Data
    versions: dict[str, str]
    device: Device
    git_commit: str | None


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def open_folder(folder: Path, config: RunConfig, *, resume: bool) -> Record | None:
    """Check that this configuration can be run in a directory, and delete temporary files of killed processes.

    Args:
        folder: The run directory. It may be missing or empty.
        config: Resolved configuration of the run.
        resume: Accept a directory that holds the same run.

    Returns:
        The record if the run is finished, else None.

    Raises:
        RunFolderError: The directory holds something else, or it holds the same run and `resume` is False.
    """
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
    both = RunConfig(**read_toml(folder / "config.toml")), config
    there, wanted = (part.canonical().flat() for part in both)
    changed = sorted(name for name in there | wanted if there.get(name) != wanted.get(name))
    if changed:
        differences = ", ".join(f"{name} {there.get(name)} there, {wanted.get(name)} here" for name in changed)
        raise RunFolderError(f"{folder} holds another run ({differences}): choose another --out")
    record = read_record(folder) if (folder / "record.json").exists() else None
    if not resume:
        state = "is finished: see its record.json" if record else "was interrupted: add --resume to continue it"
        raise RunFolderError(f"{folder} already holds this run, which {state}, or choose another --out")
    return record


def write_json(path: Path, content: Any) -> None:
    """Write JSON values to a file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_record(folder: Path) -> Record:
    """Read the record of a finished run.

    Args:
        folder: The run directory.

    Raises:
        FileFormatError: The record is missing or damaged, or its schema is not one of `READABLE`.
    """
    path = folder / "record.json"
    require_file(path, "the record of a finished run")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not the record of a finished run: {error}") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise FileFormatError(f"{path} is not the record of a finished run")
    if content["schema"] not in READABLE:
        raise FileFormatError(f"{path} has schema {content['schema']}, but expected {SCHEMA} or less")
    try:
        _RECORD.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FileFormatError(f"{path} is damaged: {where}: {first['msg']}") from error
    record: Record = content  # type: ignore[assignment]
    return record


def config_of(record: Record, folder: Path) -> RunConfig:
    """Return the configuration in a record.

    Args:
        record: Record of a run.
        folder: The run directory, for messages.

    Raises:
        FileFormatError: A field is unknown, or its value has the wrong type or is out of range.
    """
    try:
        check({"seed": 0} | record["config"])
    except UsageError as error:
        raise FileFormatError(f"{folder / 'record.json'} is damaged: config: {error}") from error
    return RunConfig(**record["config"])


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
        "git_commit": _git_commit(),
    }


def _cpu_name() -> str:
    """Return a name such as "AMD EPYC, AVX2", or the architecture if Linux gives no model name."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{models[0] if models else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _git_commit() -> str | None:
    """Return the last commit that changed the code in this checkout, with "+" for uncommitted changes."""
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
