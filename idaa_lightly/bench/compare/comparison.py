"""Groups of runs side by side: differences from a baseline, cost, and accuracy at equal compute."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

from idaa_lightly.bench.compare.groups import (
    BASELINE,
    MARKS,
    MEASURES,
    UNLABELLED,
    Group,
    Measure,
    left_out,
    near,
    read_groups,
)
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.record import accuracy_at, fit_flops, learning_curve, training_flops
from idaa_lightly.bench.run.setup import resolve
from idaa_lightly.bench.schema import Record
from idaa_lightly.errors import IDAAError, UsageError

CONFIDENCE = 0.95
WHY = {
    "data": "and accuracies on different images cannot be compared",
    "epochs": "and a longer training alone can raise accuracy",
    "commit": "and a change of the code can change results",
    "plugin files": "and a change of the code can change results",
    "device": "so their times cannot be compared",
}
"""Reasons why a difference in one of `MARKS` matters."""
MIXED = (
    "Warning: learning curves of schema 2 and older are on the test images, and later ones on the validation images, "
    "so kNN at equal operations cannot be compared between them."
)


@dataclass(frozen=True)
class Comparison:
    """Figures of groups of runs.

    Attributes:
        rows: A row per group, in percent, seconds and FLOPs.
        shared: Facts that all groups have in common.
        notes: Cautions for the reader, a sentence each.
        against: The augmentation that differences and ratios refer to.
    """

    rows: list[dict[str, Any]]
    shared: str
    notes: list[str]
    against: str = BASELINE


def interval(differences: list[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean difference (Student's t). None for fewer than two values."""
    count = len(differences)
    if count < 2:
        return None
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * stats.sem(differences))
    return mean(differences) - half, mean(differences) + half


def compare(targets: Iterable[Path], *, by_commit: bool = True, against: str = BASELINE) -> Comparison:
    """Compare the runs below these directories with those of the augmentation `against`; see `read_groups`.

    Raises:
        FileFormatError: There is no run, or a record cannot be read.
        UsageError: A run appears twice, or none is of that augmentation.
    """
    groups, unfinished = read_groups(targets, by_commit=by_commit)
    there = sorted({group.config.aug for group in groups})
    if against not in [BASELINE, *there]:
        raise UsageError(f"no run has the augmentation {against!r}: there are {', '.join(there)}")
    marked = [name for name in MARKS if len({group.mark(name) for group in groups}) > 1]
    options = _options([group.config for group in groups])
    common = {key: value for key, value in options[0].items() if all(other.get(key) == value for other in options)}
    rows = []
    for group, own in zip(groups, options, strict=True):
        found = _baselines(group, groups, against)
        baseline = found[0] if len(found) == 1 else None
        costs = [other.flops for other in groups if other.mark("data") == group.mark("data")]
        budget = min((cost for cost in costs if cost), default=None)
        row: dict[str, Any] = {"method": group.config.method, "aug": group.config.aug}
        row["options"] = " ".join(f"{key}={value}" for key, value in own.items() if key not in common)
        row |= {name: group.mark(name) for name in marked} | {"seeds": len(group.records)}
        for measure in MEASURES:
            row |= _spread(measure, group.percent(measure))
        for name in UNLABELLED:
            row |= _spread(name, group.last(name))
        for measure in ("knn", "linear"):
            row |= difference(measure, group, baseline)
        row |= _spread("train_s", group.values(lambda record: record["time"]["train_s"]))
        comparable = baseline is not None and baseline.clock == group.clock
        row["time_relative"] = group.seconds / baseline.seconds if baseline and comparable else None
        row["images_per_s"] = mean(group.values(lambda record: record["time"]["images_per_s"]))
        cost, plain = group.flops, baseline.flops if baseline else None
        row |= {
            "flops": cost,
            "budget_flops": budget,
            "flops_relative": cost / plain if cost and plain else None,
        }
        at_budget = [
            100 * accuracy_at(record, max(0.0, budget - fit_flops(record)) / training_flops(record))
            for record in group.records.values()
            if budget and cost and group.labelled
        ]
        row |= _spread("knn_at_budget", at_budget)
        rows.append(row)
    shared = [f"{name} {mark}" for name in MARKS if name not in marked and (mark := groups[0].mark(name))]
    notes = [differing(name, [record for group in groups for record in group.records.values()]) for name in marked]
    notes += dict.fromkeys(
        f"Warning: {group.config.method} × {group.config.aug} has no difference from {against}, because several groups "
        f"of {against} have its options and data: compare fewer directories."
        for group in groups
        if len(_baselines(group, groups, against)) > 1
    )
    labelled = [record for group in groups for record in group.records.values() if learning_curve(record)]
    if len({"knn_validation" in record["history"][-1] for record in labelled}) > 1:
        notes.append(MIXED)
    notes += _warnings_of_runs(groups)
    if unfinished:
        notes.append(left_out(unfinished))
    return Comparison(rows, ", ".join(shared + [f"{key}={value}" for key, value in common.items()]), notes, against)


def _warnings_of_runs(groups: list[Group]) -> list[str]:
    """Return a sentence for each kind of warning in the records. Warnings of a kind begin with the same words."""
    kinds: dict[str, list[str]] = {}
    for group in groups:
        for seed, record in group.records.items():
            for warning in record.get("warnings", []):
                words = re.split(r"[\d:]", warning)[0]
                kinds.setdefault(words, []).append(f"{near(group.folders[seed])}: {warning}")
    return [f"Warning: {f'{len(found)} runs, such as ' * (len(found) > 1)}{found[0]}." for found in kinds.values()]


def differing(mark: str, records: Iterable[Record]) -> str:
    """Return a sentence that says which values of one of `MARKS` differ, and why that matters. Empty if none do."""
    found = sorted({MARKS[mark](record) or "none" for record in records})
    values = ", ".join(found) if len(found) < 5 else f"{len(found)} values"
    return f"Warning: the runs differ in {mark} ({values}), {WHY[mark]}." if len(found) > 1 else ""


def _baselines(group: Group, groups: list[Group], against: str) -> list[Group]:
    """Return that augmentation's groups with otherwise the same options and data, of the same code if possible."""
    same = [other for other in groups if other.config.aug == against and other.setting == group.setting]
    for mark in ("commit", "plugin files"):
        same = [other for other in same if other.mark(mark) == group.mark(mark)] or same
    return same


def _spread(name: str, values: list[float]) -> dict[str, float | None]:
    """Return mean and standard deviation by name; None where nothing was measured."""
    center, std = mean(values) if values else None, stdev(values) if len(values) > 1 else None
    return {f"{name}_mean": center, f"{name}_std": std}


def difference(measure: Measure, group: Group, baseline: Group | None) -> dict[str, float | None]:
    """Return the mean difference from the baseline in points, paired by seed, with its interval.

    All values are None for the baseline itself, and without labels.
    """
    both = baseline and baseline is not group and baseline.last(measure) and group.last(measure)
    seeds = group.records.keys() & baseline.records.keys() if baseline and both else set()
    pairs = [
        100 * (group.records[seed]["last"][measure] - baseline.records[seed]["last"][measure])
        for seed in seeds
        if baseline is not None
    ]
    low, high = interval(pairs) or (None, None)
    return {
        f"{measure}_minus_baseline": mean(pairs) if pairs else None,
        f"{measure}_minus_baseline_low": low,
        f"{measure}_minus_baseline_high": high,
        f"{measure}_pairs": len(pairs),
    }


def _options(configs: list[RunConfig]) -> list[dict[str, Any]]:
    """Return each configuration's options that differ from the defaults, in it or in another one of the same method.

    For an option of the augmentation, the other configuration must also have the same augmentation.
    """

    def place(config: RunConfig, key: str) -> tuple[str, str | None, str]:
        return config.method, config.aug if key.startswith("aug.") else None, key

    own = [non_default(config) for config in configs]
    changed = {place(config, key) for config, keys in zip(configs, own, strict=True) if _usual(config) for key in keys}
    return [
        {key: value for key, value in config.flat().items() if key in keys or place(config, key) in changed}
        for config, keys in zip(configs, own, strict=True)
    ]


def _usual(config: RunConfig) -> dict[str, Any]:
    """Return the defaults of the plugins and the data. Empty if a plugin is not installed here."""
    try:
        return resolve(RunConfig(method=config.method, aug=config.aug, data=config.data)).flat()
    except IDAAError:
        return {}


def non_default(config: RunConfig) -> dict[str, Any]:
    """Return options that are not the defaults of the plugins and the data, except those in `MARKS`.

    If a plugin is not installed here, all options are returned.
    """
    usual, told = _usual(config), {"method", "aug", "data", "epochs", "data_dir"}
    return {key: value for key, value in config.flat().items() if key not in told and usual.get(key) != value}
