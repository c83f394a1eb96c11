"""The run folder, and the schema of its record.

record.json, schema 1:

    schema        1
    config        the resolved configuration, as in config.toml
    initial       {epoch: 0, knn, knn_projection, linear, linear_l2}: the untrained network, top-1 accuracies in [0, 1]
                  on all test images; and knn_pixels of the bare images, where they have 64 px or less
    last          {epoch, knn, knn_projection, linear, linear_l2}: after the last epoch; the figures to cite
    best          {epoch, knn, selected_on}: the best epoch by test kNN, an optimistic figure
    history       [{epoch, knn}, ...]: online evaluation
    evaluation    {knn_k, knn_temperature, knn_backend, features, knn_projection, linear}: the protocol
    time          {train_s, images_per_s, flops_per_image, wall_s, cpu_s, resumed_at_epoch}: train_s is the training
                  without evaluation, over all processes of a resumed run; flops_per_image is of a training step
                  with its attack; wall_s and cpu_s are of the last process
    fitted        what the augmentation made before the training: {vae: {epochs, seconds, loss, mse, kl}} for IDAA
    data          {name, train, test, classes, image_size, normalize, fingerprint, notes, views: {by, because}}; views
                  are made by the loader or by the device
    versions      of Python and of the packages that figures depend on
    device        {type, name, count, cpus, torch_threads}
    git_commit    of idaa-lightly's checkout, null where it is installed from a wheel
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from idaa_lightly.bench.config import RunConfig, read_toml
from idaa_lightly.errors import FileFormatError, RunFolderError
from idaa_lightly.files import atomic_write

SCHEMA = 1
PACKAGES = (
    "idaa-lightly", "torch", "torchvision", "lightly", "pytorch-lightning", "timm", "kornia", "numpy", "pillow",
    "faiss-cpu", "faiss-gpu", "scikit-learn",
)  # fmt: skip


def open_folder(folder: Path, config: RunConfig, *, resume: bool) -> dict[str, Any] | None:
    """Checks that a run folder can be made for this configuration, or taken up where it is there.

    Returns:
        The record if the run is finished already, else None.

    Raises:
        RunFolderError: the folder holds something else, or the same run and `resume` is not set.
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
    """Writes JSON atomically, keys in order."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Reads the record of a finished run.

    Raises:
        FileFormatError: there is none, or one of another schema.
    """
    path = folder / "record.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is no record of a finished run: {error}") from error
    if not isinstance(record, dict) or "schema" not in record:
        raise FileFormatError(f"{path} is no record of a finished run")
    if record["schema"] != SCHEMA:
        raise FileFormatError(f"{path} has schema {record.get('schema')}, but expected {SCHEMA}")
    return record


def environment(device: torch.device, count: int) -> dict[str, Any]:
    """Versions, machine and commit, for the record of a run on `count` devices of this kind."""
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
    """Such as "AMD EPYC, AVX2"; its architecture where Linux does not say."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{models[0] if models else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _git_commit() -> str | None:
    """Last commit that changed the code of the checkout that this file is in, with '+' where it is changed since."""
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
