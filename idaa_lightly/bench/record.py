"""The record of a finished run: RUN/record.json, its schema and its reader."""

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
from idaa_lightly.files import atomic_write
from idaa_lightly.options import Fraction, NonNegative, NonNegativeInt

SCHEMA = 2
"""Version of records and checkpoints. Raised when random streams change, since a resumed run would differ."""
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
        epoch: Number of epochs done.
        knn: By kNN on backbone features.
    """

    epoch: NonNegativeInt
    knn: Fraction


class AtEnd(Evaluated):
    """Top-1 accuracies in [0, 1] before or after the training.

    Attributes:
        knn_projection: By kNN on what the loss compares: the projection, or the prediction if there is one.
        linear: By a linear probe on backbone features.
        linear_l2: L2 strength of the probe, chosen on a tenth of the training images.
        knn_pixels: By kNN on bare pixels. Before the training only, for images of 64 px or less.
    """

    knn_projection: Fraction
    linear: Fraction
    linear_l2: NotRequired[NonNegative]
    knn_pixels: NotRequired[Fraction]


class Best(_Open):
    """The best epoch by kNN on the test images: an optimistic figure."""

    epoch: NonNegativeInt
    knn: Fraction
    selected_on: str


class Protocol(_Open):
    """How accuracies were measured: k and temperature of kNN, what searched, and what the features are."""

    knn_k: Annotated[int, Ge(1)]
    knn_temperature: float
    knn_backend: str


class Time(_Open):
    """Cost of the run.

    Attributes:
        train_s: Seconds of training without evaluation, over all processes of a resumed run.
        images_per_s: Training images per second of `train_s`.
        flops_per_image: Floating-point operations of a training step with its attack, divided by its images.
        wall_s: Wall time of the last process.
        cpu_s: CPU time of the last process.
        resumed_at_epoch: Epoch of the checkpoint that the last process resumed; None if it resumed none.
    """

    train_s: NonNegative
    images_per_s: NonNegative
    flops_per_image: NonNegativeInt | None
    wall_s: NonNegative
    cpu_s: NonNegative
    resumed_at_epoch: NonNegativeInt | None


class Data(_Open):
    """Facts of the data set; `fingerprint` has a hash of the training images and one of the test images."""

    name: str
    train: NonNegativeInt
    test: NonNegativeInt
    classes: NonNegativeInt
    image_size: NonNegativeInt
    normalize: dict[str, list[float]]
    fingerprint: tuple[str, str]
    notes: list[str]


class Device(_Open):
    """Where the run trained: type and name of the device, how many, and CPUs and threads of the machine."""

    type: str
    name: str
    count: NonNegativeInt
    cpus: NonNegativeInt | None
    torch_threads: NonNegativeInt


class Record(_Open):
    """Content of record.json.

    Attributes:
        schema: Version of the record.
        config: The resolved configuration, as in config.toml.
        initial: Accuracies of the untrained network.
        last: Accuracies after the last epoch: the figures to cite.
        best: The best epoch, selected on the test images.
        history: Accuracies during the training, from epoch 0.
        evaluation: The protocol of the evaluations.
        time: Cost of the run.
        fitted: What the augmentation fitted before the training: for IDAA {vae: {epochs, seconds, loss, mse, kl}}.
        data: Facts of the data set.
        versions: Versions of Python and of the packages that results depend on.
        device: Where the run trained.
        git_commit: Commit of idaa-lightly's checkout, with "+" if it was changed; None if installed from a wheel.
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
    """Check that a run directory can be made for this configuration, or resumed if it is there.

    Returns:
        The record if the run is finished already, else None.

    Raises:
        RunFolderError: The directory holds something else, or the same run and `resume` is not set.
    """
    taken = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if taken:
        raise RunFolderError(f"{taken} is no folder: choose another --out")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / "config.toml").exists():
        raise RunFolderError(f"{folder} holds files that are no run: choose another --out")
    both = RunConfig(**read_toml(folder / "config.toml")), config
    there, wanted = (part.canonical().flat() for part in both)
    changed = sorted(name for name in there | wanted if there.get(name) != wanted.get(name))
    if changed:
        differences = ", ".join(f"{name} {there.get(name)} there, {wanted.get(name)} here" for name in changed)
        raise RunFolderError(f"{folder} holds another run ({differences}): choose another --out")
    record = read_record(folder) if (folder / "record.json").exists() else None
    if not resume:
        state = "is finished: see its record.json" if record else "was interrupted: add --resume to go on with it"
        raise RunFolderError(f"{folder} holds this very run, which {state}, or choose another --out")
    return record


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_record(folder: Path) -> Record:
    """Read the record of a finished run.

    Raises:
        FileFormatError: There is none, or it does not have the schema of this or an earlier version.
    """
    path = folder / "record.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is no record of a finished run: {error}") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise FileFormatError(f"{path} is no record of a finished run")
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
    """Return the configuration of the run recorded in `folder`.

    Raises:
        FileFormatError: It sets an unknown field, or a field to a value that is not of its type or range.
    """
    try:
        check({"seed": 0} | record["config"])
    except UsageError as error:
        raise FileFormatError(f"{folder / 'record.json'} is damaged: config: {error}") from error
    return RunConfig(**record["config"])


def environment(device: torch.device, count: int) -> dict[str, Any]:
    """Return versions, device and commit, for the record of a run on `count` devices of this kind."""
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
    """Return a name such as "AMD EPYC, AVX2"; the architecture where Linux gives no model name."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{models[0] if models else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _git_commit() -> str | None:
    """Return the last commit that changed the code of this file's checkout, with "+" if files changed since."""
    here = Path(__file__).resolve()
    try:
        git = ["git", "-C", str(here.parent)]
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True)
        code = [str(here.parents[1]), str(here.parents[2] / "plugins")]  # records and pages change no result
        last = subprocess.run(
            [*git, "log", "-1", "--format=%H", "--", *code], check=True, capture_output=True, text=True
        )
        changed = subprocess.run([*git, "status", "--porcelain", "-uno", "--", *code], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return last.stdout.strip() + ("+" if changed.stdout else "")
