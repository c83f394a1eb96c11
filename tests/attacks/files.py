"""Cases of damaged files and records, and of full disks."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from attacks.arena import Case, files, limit_of_files
from attacks.fixture import EVALUATIONS, IDAA, NONE, RESULTS, difference, figures
from attacks.mutations import damaged, edited, mutated

RESUME = [*NONE, "--out", "stopped", "--resume"]
TARGETS: dict[str, list[list[str]]] = {
    "stopped/checkpoints/last.ckpt": [RESUME],
    "stopped/checkpoints/previous.ckpt": [RESUME],
    "stopped/config.toml": [RESUME],
    "stopped/metrics.csv": [RESUME],
    "finished/checkpoints/last.ckpt": [EVALUATIONS["identity"], ["knn", "finished/checkpoints/last.ckpt"]],
    "finished/record.json": [["compare", "finished"], ["knn", "finished"], [*NONE, "--out", "finished", "--resume"]],
    "finished/backbone.pt": [["knn", "finished"], EVALUATIONS["finetune"], ["export", "finished", "--out", "x.pth"]],
    "finished/features.npz": [["knn", "finished"], ["linear", "finished", "--seed", "1"]],
    "finished/knn.json": [["knn", "finished"], ["knn", "finished", "--k", "1"]],
    "finished/linear.json": [["linear", "finished"]],
    "finished/finetune.json": [EVALUATIONS["finetune"]],
    "finished/config.toml": [["knn", "finished"], ["compare", "finished"], EVALUATIONS["identity"]],
    "finished/metrics.csv": [["report", "finished", "--out", "x.html"]],
    "cache/vae": [[*IDAA, "--out", "out"]],
    "vae.pt": [[*IDAA, "--vae", "vae.pt", "--epochs", "1", "--out", "out"]],
    "features.npz": [["knn", "features.npz"], ["linear", "features.npz"]],
    "recipe.toml": [["run", "--config", "recipe.toml", "--dry-run"]],
}
"""Commands that read each file. A folder is taken from the fixture as a whole."""
CHECKED = (".ckpt", ".pt", ".npz")
"""Files with checksums. If a command accepts a damaged one, its result must be the usual one."""


class Exploit:
    """Object whose unpickling creates a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def damaged_files(case: Case) -> None:
    """Damage a file, and call a command that reads it."""
    random = case.random
    name = random.choice([*TARGETS, *TARGETS, "stopped/checkpoints/last.ckpt", "finished/checkpoints/last.ckpt"])
    command = random.choice(TARGETS[name])
    case.take("images")
    path = _taken(case, name)
    what, same = _damage(random, path)
    if (
        name == "stopped/checkpoints/last.ckpt"
        and path.with_name("previous.ckpt").exists()
        and random.randrange(4) == 0
    ):
        what += f"; previous.ckpt: {_damage(random, path.with_name('previous.ckpt'))[0]}"
    case.outcome.tried = f"{name}: {what}; {' '.join(command[:2])}"
    folder = Path(name.partition("/")[0])
    before = files(folder) if folder.is_dir() else {}
    kept = ("images", "finished/record.json", "finished/backbone.pt", "finished/config.toml")
    result = case.bench(*command, kept=() if command[0] == "run" else kept)
    case.expect(not Path("pwned").exists(), "code of a file was executed")
    if result.exit_code:
        case.expect(not folder.is_dir() or files(folder) == before, "a refused command changed the run")
    elif (same and path.suffix in CHECKED) or name == "stopped/metrics.csv":
        _expect_usual(case, command, metrics=name != "stopped/metrics.csv")


def _taken(case: Case, name: str) -> Path:
    if name == "recipe.toml":
        Path(name).write_text((case.fixture / "whole/config.toml").read_text())
    elif name == "cache/vae":
        shutil.copytree(case.fixture / "cache", case.place / "cache", dirs_exist_ok=True)
        return case.random.choice([path for path in sorted((case.place / "cache").iterdir()) if path.suffix != ".lock"])
    else:
        case.take(name.partition("/")[0])
    return Path(name) if Path(name).exists() else Path(name).with_name("last.ckpt")  # Older versions keep only one.


def _expect_usual(case: Case, command: list[str], *, metrics: bool) -> None:
    """Expect the result of a command on undamaged files."""
    if command is RESUME or ("--out" in command and command[-1] == "out"):
        usual = "whole" if command is RESUME else "idaa"
        changed = (
            None
            if "--vae" in command
            else difference(case.fixture / usual, Path(command[command.index("--out") + 1]), metrics=metrics)
        )
        case.expect(changed is None, f"{changed} in the end")
    elif command in EVALUATIONS.values() and command is not EVALUATIONS["identity"]:
        result = Path("finished", RESULTS[command[0]])
        case.expect(figures(result) == figures(case.fixture / result), f"another result in {result}")


def _damage(random: Random, path: Path) -> tuple[str, bool]:
    """Damage a file. Return what was done, and whether a checksum can tell."""
    kind = random.choice(["bytes"] * 5 + ["content"] * 3 + ["replace"] * 2)
    if kind == "bytes":
        what, content = damaged(random, path.read_bytes())
        path.write_bytes(content)
        return what, True
    if kind == "content" and path.suffix in (".ckpt", ".pt"):
        return _other_tensors(random, path), False
    if kind == "content" and path.suffix == ".npz":
        return _other_arrays(random, path), False
    if kind == "content":
        text = path.read_text()
        new = json.dumps(mutated(random, json.loads(text))) if path.suffix == ".json" else edited(random, text)
        path.write_bytes(new.encode("utf-8", "surrogatepass"))
        return "other values", False
    path.unlink()
    name = random.choice(list(OTHERS))
    OTHERS[name](path)
    return name, True


def _other_tensors(random: Random, path: Path) -> str:
    content = torch.load(path, weights_only=True)
    states = [content] + [content[name] for name in ("state_dict", "state") if name in content]
    state, kind = states[-1], random.choice(["tree", "shapes", "names", "types", "fewer", "NaN", "more"])
    if kind == "tree":
        content = mutated(random, {name: value for name, value in content.items()})
    for name in list(state) if kind != "tree" else ():
        value = state[name]
        if not isinstance(value, torch.Tensor) or random.randrange(3):
            continue
        if kind == "shapes":
            state[name] = value.reshape(-1)[: random.randint(0, 2)]
        elif kind == "names":
            state[f"x.{name}"] = state.pop(name)
        elif kind == "types":
            state[name] = random.choice(
                [value.to(torch.complex64), value.bool(), "x", 3, None, [value], value.to_sparse()]
            )
        elif kind == "fewer":
            del state[name]
        elif kind == "NaN" and value.is_floating_point():
            state[name] = torch.full_like(value, random.choice([float("nan"), float("inf"), 1e38]))
        elif kind == "more":
            state[f"{name}.x"] = value
    torch.save(content, path)
    return f"other tensors: {kind}"


def _other_arrays(random: Random, path: Path) -> str:
    with np.load(path) as loaded:
        arrays = dict(loaded)
    name = random.choice([name for name, value in arrays.items() if value.dtype.kind in "fiu"])
    value = arrays[name]
    kind = random.choice(["fewer", "types", "shape", "values", "objects"])
    if kind == "fewer":
        del arrays[name]
    elif kind == "types":
        arrays[name] = np.resize(value, value.shape).astype(
            random.choice(["f2", "f8", "i8", "u1", "c8", "?", "U3", ">f4", ">i8"])
        )
    elif kind == "shape":
        arrays[name] = np.resize(value, random.choice([(), (0,), (9,), (9, 4), (36, 0), (12, 2, 2), (36, 1), (12,)]))
    elif kind == "values":
        arrays[name] = value * random.choice([-1, 0, 10**6, 2**40, float("nan"), float("inf"), 1e300])
    else:
        arrays[name] = np.array([{}], dtype=object)
    np.savez(path, **arrays)
    return f"other arrays: {kind} of {name}"


def _png(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path, "PNG")


OTHERS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "zero bytes": Path.touch,
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "text": lambda path: path.write_text("no such thing\n" * 9),
    "other text": lambda path: path.write_text("[]"),
    "an image": _png,
    "a list of tensors": lambda path: torch.save([torch.ones(2)], path),
    "an empty dict": lambda path: torch.save({}, path),
    "an old kind of file": lambda path: torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False),
    "an exploit": lambda path: torch.save({"state_dict": Exploit()}, path),
    "a pickled exploit": lambda path: path.write_bytes(pickle.dumps({"state_dict": Exploit()})),
    "arrays": lambda path: np.savez(path.open("wb"), a=np.ones(3)),
    "an archive": lambda path: shutil.copyfile(
        shutil.make_archive(tempfile.mkdtemp(), "zip", tempfile.mkdtemp()), path
    ),
}


def records(case: Case) -> None:
    """Change values of a record or of results, and compare or report the run with another one."""
    random = case.random
    for name in ("finished", "other"):
        case.take(name, f"runs/{name}")
    name = random.choice(["record.json"] * 8 + ["identity/identity.json", "knn.json", "linear.json"])
    name = name if Path("runs/finished", name).exists() else "record.json"
    path = Path("runs/finished", name)
    path.write_text(json.dumps(mutated(random, json.loads(path.read_text()))))
    format = random.choice(["markdown", "csv", "latex"])
    command = random.choice(
        [["compare", "runs", "--format", format]] * 8
        + [
            ["compare", "runs"],
            ["compare", "runs", "--against", "none", "--plot", "x.svg"],
            ["report", "runs", "--out", "x.html"],
        ]
    )
    if name != "record.json":
        command = ["report", "runs", "--out", "x.html"]
    case.outcome.tried = f"{name}, {' '.join(command)}"
    result = case.bench(*command, kept=("runs",))
    if result.exit_code == 1:
        case.expect("runs/finished" in " ".join(result.stderr.split()), f"no path in {result.stderr!a}")


def full_disks(case: Case) -> None:
    """Call a command while the disk is nearly full, then again with enough space. The result must be the usual one."""
    random = case.random
    case.take("images")
    case.take("whole", "finished")
    commands = {"run": [*NONE, "--out", "out"], "vae": [*IDAA, "--out", "out"], **EVALUATIONS}
    name = random.choice(["run", "run", *commands])
    size = int(10 ** random.uniform(1, 5.2))
    case.outcome.tried = f"{name} with {size} bytes"
    kept = ("images", *(f"finished/{part}" for part in ("record.json", "backbone.pt", "checkpoints", "config.toml")))
    with _little_space(case, name in ("run", "vae"), size):
        full = case.bench(*commands[name], kept=kept)
    if full.exit_code:
        case.expect("cannot be" in full.stderr, f"another message: {full.stderr[-200:]!a}")
    if name in ("run", "vae"):
        again = case.bench(*commands[name], "--resume", kept=kept)
        if again.exit_code == 0:
            changed = difference(case.fixture / ("whole" if name == "run" else "idaa"), Path("out"))
            case.expect(changed is None, f"{changed} after a full disk")
    else:
        again = case.bench(*commands[name], kept=kept)
        result = Path("finished", RESULTS[name])
        if again.exit_code == 0:
            case.expect(figures(result) == figures(case.fixture / result), f"another result in {result}")
    case.expect(again.exit_code == 0, f"cannot go on: {again.stderr[-300:]!a}")


@contextmanager
def _little_space(case: Case, fresh: bool, size: int) -> Iterator[None]:
    """Limit the size of files, or mount a small file system where the run will be, if that is allowed."""
    if not fresh or case.random.randrange(2):
        with limit_of_files(size):
            yield
        return
    Path("out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(4096, 3 * size)}", "none", "out"]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        with limit_of_files(size):
            yield
        return
    case.outcome.tried += ", a small file system"
    try:
        yield
    finally:
        shutil.copytree("out", "copy")
        subprocess.run(["umount", "out"], check=True)
        Path("out").rmdir()
        Path("copy").rename("out")
