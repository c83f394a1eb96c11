"""Rows of an ablation, each a plain configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.compare.groups import BASELINE
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import resolve
from idaa_lightly.errors import UsageError
from idaa_lightly.plugin import Control
from idaa_lightly.registry import load

Kind = Literal["alone", "control", "variant", "candidate", "compute"]
"""Purpose of a row.

`alone` is the method without the augmentation. `compute` is `alone`, trained for as many operations as the candidate.
A gain must exceed every `control`. A `variant` is another form of the augmentation, which is only shown.
"""
ALONE, COMPUTE = "method alone", "method alone, equal compute"


@dataclass(frozen=True)
class Row:
    """Row of an ablation.

    Attributes:
        name: Name in tables and plots.
        kind: Purpose of the row.
        config: Configuration of its runs. The seed is set later.
        adds: Part that the row has and the row before it on the ladder lacks. Empty if it is no step of the ladder.
        fixed: Options of the method that define the row, so that no trial changes them.
    """

    name: str
    kind: Kind
    config: RunConfig
    adds: str = ""
    fixed: tuple[str, ...] = ()


def rows_of(config: RunConfig) -> tuple[list[Row], list[str]]:
    """Return the rows of an augmentation, except for that at equal compute, and sentences on rows that do not exist.

    Args:
        config: Configuration of the augmentation.

    Raises:
        UsageError: The augmentation is the baseline itself, or an option cannot be used.
    """
    if config.aug == BASELINE:
        raise UsageError("--aug is none, which is what augmentations are compared with: name an augmentation")
    augmentation, method = make_augmentation(resolve(config)), load("method", config.method)
    rows, missing = [Row(ALONE, "alone", _controlled(config, Control(ALONE, BASELINE)), ALONE)], []
    norms = _has_batchnorm(config)
    for control in augmentation.controls(method):
        aug = control.aug or config.aug
        same = "without BatchNorm it is another row" * (control.twin and not norms)
        if reason := control.missing or same or load("augmentation", aug).refuses(method):
            missing.append(f"There is no row {control.name!r} for {config.method}: {reason}.")
            continue
        kind: Kind = "control" if control.judged else "variant"
        fixed = tuple(control.options.get("method", ()))
        own = _controlled(config, control)
        try:
            resolve(own)
        except UsageError as error:
            raise UsageError(f"control {control.name!r} of {config.aug!r}: {error}") from error
        rows.append(Row(control.name, kind, own, control.adds, fixed))
    return [*rows, Row(config.aug, "candidate", config, augmentation.adds)], missing


def _has_batchnorm(config: RunConfig) -> bool:
    """Return True if the method has a BatchNorm, in its backbone or its heads. The backbone takes no memory."""
    config = resolve(config)
    with torch.device("meta"):
        network, size = create_backbone(config.backbone or "", config.image_size or 32, config.set.get("backbone"))
    with torch.random.fork_rng([]):
        method = load("method", config.method)(nn.Identity(), size, **config.set["method"])
    return any(isinstance(part, _BatchNorm) for part in (*network.modules(), *method.modules()))


def at_equal_compute(alone: Row, flops_per_epoch: float, flops: float) -> Row:
    """Return the method alone, trained for as many operations as the candidate.

    Args:
        alone: The method alone.
        flops_per_epoch: Its operations per epoch.
        flops: Operations of the candidate, with those of its fitting.
    """
    epochs = max(1, round(flops / flops_per_epoch))
    return Row(COMPUTE, "compute", replace(alone.config, epochs=epochs))


def trials_of(row: Row, tune: Mapping[str, Sequence[str]]) -> list[tuple[dict[str, str], RunConfig]]:
    """Return the trials of a row: every combination of these values, on the validation images.

    Args:
        row: The row.
        tune: Values to try by option of the method.
    """
    found = []
    for values in product(*tune.values()):
        chosen = dict(zip(tune, values, strict=True))
        found.append((chosen, replace(with_options(row, chosen), evaluate_on="validation")))
    return found


def with_options(row: Row, chosen: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a row with other options of the method, except those that define the row."""
    free = {key: value for key, value in chosen.items() if key not in row.fixed}
    options = {**row.config.set, "method": {**row.config.set.get("method", {}), **free}}
    return replace(row.config, set=options)


def _controlled(config: RunConfig, control: Control) -> RunConfig:
    """Return the configuration of a control."""
    same = control.aug in ("", config.aug)
    options = {scope: dict(values) for scope, values in config.set.items() if same or scope != "aug"}
    for scope, values in control.options.items():
        options[scope] = options.get(scope, {}) | dict(values)
    return replace(config, aug=control.aug or config.aug, vae=config.vae if same else None, set=options)
