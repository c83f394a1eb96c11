"""Checkpoints of a run.

last.ckpt is resumed, or previous.ckpt, from an epoch earlier, if it is damaged. `--save-every 10` also keeps
epoch-00010.ckpt and so on.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from idaa_lightly.bench.config import read_toml
from idaa_lightly.bench.ranks import is_first_process
from idaa_lightly.bench.schema import Position, Progress, check_form
from idaa_lightly.errors import FileFormatError
from idaa_lightly.files import load_tensors, save_tensors
from idaa_lightly.seeding import STREAMS
from idaa_lightly.training import EPOCHS, Training

log = logging.getLogger(__name__)
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
PARTS = ("loops", "callbacks")
"""Parts of a checkpoint of which a run needs only some entries."""
LARGEST = 1e12
"""Numbers in checkpoints, such as steps and seconds, are smaller."""


class CheckpointFiles(TorchCheckpointIO):
    """Plugin of Lightning's Trainer that writes checkpoints atomically and keeps the previous one.

    Lightning's own writes to TMPDIR and moves the file. Between file systems, that overwrites the only checkpoint in
    place, and a kill meanwhile loses it.

    Args:
        save_every: Epochs between checkpoints that are written to a file of their own as well. None writes none.
    """

    def __init__(self, save_every: int | None = None) -> None:
        super().__init__()
        self.save_every = save_every

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, and keep the file that it replaces as previous.ckpt."""
        place, done = Path(path), checkpoint["epoch"] + 1
        if self.save_every and done % self.save_every == 0:  # before last.ckpt, so that a kill cannot leave it out
            save_tensors(checkpoint, place.with_name(f"epoch-{done:05}.ckpt"))
        save_tensors(checkpoint, place, previous=place.with_name(PREVIOUS))


class Found(NamedTuple):
    """A checkpoint that can be read.

    Attributes:
        path: File that it was read from, last.ckpt or previous.ckpt.
        content: Its content.
        fallback: Sentence on why last.ckpt was not used. Empty if it was.
        begun_with: Number of epochs that the run was begun with, if `content` was changed to another one. Else None.
    """

    path: Path
    content: dict[str, Any]
    fallback: str
    begun_with: int | None = None


def read_checkpoint(folder: Path) -> Found | None:
    """Read last.ckpt, or previous.ckpt if it is missing or damaged. Return None if there is neither.

    Args:
        folder: Directory of the checkpoints.

    Raises:
        FileFormatError: There are files, but none is a checkpoint.
    """
    faults: dict[Path, str] = {}
    for name in (LAST, PREVIOUS):
        path = folder / name
        try:
            content = load_tensors(path, "a checkpoint of this run")
            if not {"state_dict", "pytorch-lightning_version"} <= content.keys():
                raise FileFormatError(f"{path} is not a checkpoint of this run: it holds something else")
        except FileFormatError as error:
            faults[path] = str(error)
            continue
        words = "".join(f"{fault}. Falling back to {PREVIOUS}, from an epoch earlier" for fault in faults.values())
        return Found(path, content, words)
    damaged = [fault for path, fault in faults.items() if path.exists() or path.is_symlink()]
    if damaged:
        raise FileFormatError(f"{', and '.join(damaged)}: start anew with another --out")
    return None


def checkpoint_to_evaluate(folder: Path) -> Found | None:
    """Read a checkpoint like `read_checkpoint`, and log it if last.ckpt is not used.

    Args:
        folder: Directory of the checkpoints.

    Raises:
        FileFormatError: There are files, but none is a checkpoint.
    """
    found = read_checkpoint(folder)
    if found is not None and found.fallback:
        log.info(f"{found.fallback}.")
    return found


def last_checkpoint(out: Path) -> Found | None:
    """Read the checkpoint that a run is resumed from. Return None if there is none.

    Args:
        out: The run directory.

    Raises:
        FileFormatError: Neither file is a checkpoint of this version.
    """
    found = read_checkpoint(out / "checkpoints")
    if found is None:
        return None
    if found.content.get("idaa_lightly_streams") != STREAMS:
        raise FileFormatError(
            f"{found.path} was written by a version of idaa-lightly with other random streams, so a resumed run would "
            "differ from an uninterrupted one: finish it with that version, or start anew with another --out"
        )
    check_form(found.content, Position, found.path)
    if EPOCHS not in found.content:  # It is older than this key, so config.toml has not been changed since.
        found.content[EPOCHS] = read_toml(out / "config.toml").get("epochs")
    return found


def adopt(found: Found) -> Path:
    """Return the path of a checkpoint to resume, last.ckpt. The first process puts it there if it is not.

    A previous.ckpt is renamed to it. The next checkpoint would otherwise replace the good file by the damaged one.

    Args:
        found: Checkpoint that fits the run.
    """
    last = found.path.with_name(LAST)
    if found.fallback and is_first_process():
        os.replace(found.path, last)
        log.info(f"{found.fallback}, which is {LAST} now.")
    if found.begun_with and is_first_process():
        save_tensors(found.content, last, previous=last.with_name(PREVIOUS))
    return last


def require_fit(found: Found, module: Training, trainer: pl.Trainer) -> None:
    """Check that a checkpoint has the form of those that a run writes: its names, types, shapes and ranges.

    Lightning checks neither the state of the optimiser nor that of the callbacks.

    Args:
        found: The checkpoint.
        module: The run's module.
        trainer: The run's trainer, with its callbacks.

    Raises:
        FileFormatError: The checkpoint has another form.
    """
    checkpoint, path = found.content, found.path
    made: Any = module.configure_optimizers()
    optimizer, same_length = made["optimizer"], checkpoint[EPOCHS] == module.schedule[0]
    states = {part.state_key: part.state_dict() for part in trainer.callbacks}  # type: ignore[attr-defined]
    parts: dict[str, dict[str, Any]] = {}
    for name in PARTS:
        value = checkpoint.get(name)
        parts[name] = value if isinstance(value, dict) else {}
    expected: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict() | {"state": {}}],
        # The schedule of another number of epochs is replaced.
        "lr_schedulers": [made["lr_scheduler"]["scheduler"].state_dict()] if same_length else [],
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
        # A run may be resumed with other loggers, and so with other callbacks.
        "callbacks": {name: state for name, state in states.items() if name in parts["callbacks"]},
    }
    got = {name: checkpoint.get(name) for name in expected}
    got |= {name: {key: part[key] for key in expected[name] if key in part} for name, part in parts.items()}
    fault = _fault(expected, got) or _fault_of_state(checkpoint["optimizer_states"][0]["state"], optimizer)
    if fault:
        raise FileFormatError(f"{path} does not fit this run ({fault}): delete it, or start anew with another --out")
    check_form(parts["callbacks"].get("Evaluation"), Progress, path, "callbacks.Evaluation")


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.layout]:
    return tensor.shape, tensor.dtype, tensor.layout


def _fault(expected: Any, got: Any, where: str = "") -> str | None:
    """Return where a value has another form than expected, or None. An expected None, [] or {} stands for anything."""
    if isinstance(expected, Tensor):
        same = isinstance(got, Tensor) and _form(got) == _form(expected)
        if same and expected.isfinite().all() and not got.isfinite().all():
            return f"{where} is not finite"
    elif isinstance(expected, bool | str):
        same = isinstance(got, type(expected))
    elif isinstance(expected, int | float):
        same = isinstance(got, int | float) and abs(got) < LARGEST
    elif isinstance(expected, dict | list | tuple):
        pairs = [dict(enumerate(part)) if isinstance(part, list | tuple) else part for part in (expected, got)]
        if isinstance(got, dict) != isinstance(expected, dict) or not isinstance(got, dict | list | tuple):
            return f"{where or 'it'} is of type {type(got).__name__}"
        if expected and (other := pairs[0].keys() ^ pairs[1].keys()):
            return f"{where or 'it'} has other entries, such as {min(map(str, other))!r:.80}"
        inner = (_fault(value, pairs[1][name], f"{where}.{name}".strip(".")) for name, value in pairs[0].items())
        return next(filter(None, inner), None)
    else:
        same = True
    return None if same else f"{where} is {shorten(repr(got), 80)}"


def _fault_of_state(state: dict[int, Any], optimizer: torch.optim.Optimizer) -> str | None:
    """Return where the state of an optimiser has another form than after a step, or None.

    A parameter that has no gradient in the training has no state.
    """
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for part in group["params"]:
            part.grad = torch.zeros_like(part)
    trial.step(lambda: 0.0)
    expected = trial.state_dict()["state"]
    if bool(state) != bool(expected) or not state.keys() <= expected.keys():
        return "the state of the optimiser has other entries"
    return _fault({number: expected[number] for number in state}, state, "the optimiser's state")
