"""Resuming a run with another number of epochs than it was begun with, as one run of the new length.

A run is not resumed if a run of the new length would have trained the finished epochs in another way.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import torch

from idaa_lightly.bench.progress import quantity
from idaa_lightly.bench.run.checkpoint import Found
from idaa_lightly.bench.run.evaluation import AT_ENDS
from idaa_lightly.bench.run.fitting import fit_context
from idaa_lightly.bench.run.setup import Parts
from idaa_lightly.errors import UsageError
from idaa_lightly.plugin import FitContext
from idaa_lightly.training import EPOCHS, Evaluation, Training

log = logging.getLogger(__name__)
RESULTS = ("record.json", "backbone.pt")
"""Files of a finished run that are kept under other names when it is resumed."""


def require_same_start(found: Found, parts: Parts, out: Path) -> None:
    """Check that a run of `parts.epochs` epochs would have trained the finished epochs in the same way.

    Args:
        found: Checkpoint to resume.
        parts: Parts of the run, before its augmentation is fitted.
        out: The run directory.

    Raises:
        UsageError: The schedule, the fitting or the method depends on the number of epochs, or the run has reached it.
    """
    before, after, done = found.content[EPOCHS], parts.epochs, found.content["epoch"] + 1
    if before == after:
        return
    if after <= done:
        raise UsageError(f"epochs is {after}, but {out} has trained {done} already: give a larger number")
    if reason := _difference(parts, before, done * parts.steps):
        raise UsageError(
            f"{out} was begun with {quantity(before, 'epoch')} and cannot be resumed with {after}: {reason}. Train "
            f"anew with another --out, or continue from its weights there by --weights {found.path}"
        )


def _difference(parts: Parts, before: int, steps: int) -> str:
    """Return what depends on the number of epochs in the first steps, or an empty string."""
    config = parts.config
    schedules = zip(*(_settings(parts, epochs, steps) for epochs in (before, parts.epochs)), strict=True)
    for step, (there, here) in enumerate(schedules, 1):
        if there != here:
            rates = [f"{groups[0]['lr']:.4g}" for groups in (there, here)]
            return (
                f"its schedule depends on the number of epochs, so step {step} was trained with the learning rate "
                f"{rates[0]}, but would have been with {rates[1]}"
            )
    if _fitting_asks(parts):
        return f"the fitting of {config.aug!r} depends on the number of epochs, unless its options set another number"
    try:
        for step in (0, steps):
            copy.deepcopy(parts.method).before_step(step, cast(Any, object()), parts.steps)
    except TypeError:  # The method computes with the number of epochs, for which the object stands.
        return f"{config.method!r} prepares its steps by the number of epochs"
    return ""


def _settings(parts: Parts, epochs: int, steps: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the settings of the optimiser at each of the first steps of a training of `epochs` epochs."""
    groups = [{"params": [part for part in parts.method.parameters() if part.requires_grad]}]
    optimizer, scheduler = parts.method.optimizer(groups, epochs, parts.steps)
    for _ in range(steps):
        yield [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        _advance(scheduler)


def _advance(scheduler: Any, steps: int = 1) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # The optimiser makes no step.
        for _ in range(steps):
            scheduler.step()


class _Asked(Exception):
    """Raised when the number of epochs is asked for."""


class _Ended(Exception):
    """Raised to end a fitting."""


class _End:
    """Stands for the views and the progress of a fitting, and ends it when the first batch or step is due."""

    def __iter__(self) -> NoReturn:
        raise _Ended

    def __call__(self, *_: object) -> NoReturn:
        raise _Ended


class _Watched(FitContext):
    """Context whose number of epochs must not be asked for."""

    def __getattribute__(self, name: str) -> Any:
        if name == "epochs":
            raise _Asked
        return super().__getattribute__(name)


def _fitting_asks(parts: Parts) -> bool:
    """Return True if the fitting of the augmentation asks for the number of epochs. It ends before anything is done."""
    context = vars(fit_context(parts, torch.device("cpu")))
    context |= dict.fromkeys(("views", "progress"), lambda *_: _End())
    try:
        copy.deepcopy(parts.augmentation).fit(_Watched(**context))
    except _Asked:
        return True
    except _Ended:
        pass
    return False


def lengthened(found: Found, module: Training, evaluation: Evaluation) -> Found:
    """Return a checkpoint as a run of `evaluation.epochs` epochs would have written it.

    Args:
        found: Checkpoint of a training with the same or another number of epochs, which fits the run.
        module: The run's module, with the schedule of the new length.
        evaluation: The run's callback that evaluates. Evaluations that it would not have made are dropped.
    """
    before, content = found.content[EPOCHS], found.content
    if before == evaluation.epochs:
        return found
    made: Any = module.configure_optimizers()
    scheduler, (state,) = made["lr_scheduler"]["scheduler"], content["optimizer_states"]
    _advance(scheduler, (content["epoch"] + 1) * module.schedule[1])
    evaluated = content["callbacks"][evaluation.state_key]
    history = [
        {name: value for name, value in entry.items() if entry["epoch"] == 0 or name not in AT_ENDS}
        for entry in evaluated["history"]
        if entry["epoch"] == 0 or evaluation.due(entry["epoch"])
    ]
    log.info(f"Going on to {evaluation.epochs} epochs instead of {before}.")
    changed = {
        EPOCHS: evaluation.epochs,
        "lr_schedulers": [scheduler.state_dict()],
        "optimizer_states": [state | {"param_groups": made["optimizer"].state_dict()["param_groups"]}],
        "callbacks": content["callbacks"] | {evaluation.state_key: evaluated | {"history": history}},
    }
    return found._replace(content=content | changed, begun_with=before)


def keep_results(out: Path, epochs: int) -> None:
    """Rename the record and the weights of a finished run, such as to record-15-epochs.json.

    Args:
        out: The run directory. The run need not be finished.
        epochs: Number of epochs that the run was begun with.
    """
    for name in RESULTS:
        if (path := out / name).exists():
            kept = path.with_stem(f"{path.stem}-{epochs}-epochs")
            os.replace(path, kept)
            log.info(f"{path} is kept as {kept.name}.")
