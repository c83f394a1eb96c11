"""Finished runs side by side: groups of seeds, differences to a baseline, cost, and accuracy at equal compute."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.record import read_record
from idaa_lightly.bench.run.setup import resolve
from idaa_lightly.errors import FileFormatError, IDAAError, UsageError

Record = Mapping[str, Any]
BASELINE = "none"
CONFIDENCE = 0.95
MARKS: dict[str, Callable[[Record], str]] = {
    "data": lambda record: f"{record['data']['name']} {'/'.join(part[:6] for part in record['data']['fingerprint'])}",
    "epochs": lambda record: str(record["config"]["epochs"]),
    "commit": lambda record: _short(record["git_commit"]) or f"version {record['versions']['idaa-lightly']}",
    "device": lambda record: "{count} × {name}, {torch_threads} CPU threads".format(**record["device"]),
}
"""What makes groups hard to compare where they differ in it."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only: records and folders by seed; `config` is theirs with seed 0."""

    config: RunConfig
    records: Mapping[int, Record]
    folders: Mapping[int, Path]

    def values(self, value: Callable[[Record], float]) -> list[float]:
        """Of each run."""
        return [value(record) for record in self.records.values()]

    @property
    def seconds(self) -> float:
        """Mean time of training."""
        return mean(self.values(lambda record: record["time"]["train_s"]))

    @property
    def flops(self) -> float | None:
        """Mean operations of the training, with its attacks, without evaluation and VAE; None if not recorded."""
        found = self.values(lambda record: (record["time"].get("flops_per_image") or 0) * images_seen(record))
        return mean(found) if all(found) else None

    @property
    def clock(self) -> tuple[str, str]:
        """Times of two groups can be compared where this is equal."""
        return self.mark("data"), self.mark("device")

    @property
    def setting(self) -> str:
        """What a group and its baseline have in common."""
        config = replace(self.config, aug=BASELINE, set={**self.config.set, "aug": {}})
        return json.dumps([config.to_dict(), self.mark("data")], sort_keys=True)

    def mark(self, name: str) -> str:
        """What its runs have for one of `MARKS`."""
        return " + ".join(sorted(set(map(MARKS[name], self.records.values()))))


@dataclass(frozen=True)
class Comparison:
    """Numbers, a row a group, in percent, seconds and FLOPs; what all groups share; and what to bear in mind.

    Differences and relations are to `against`, an augmentation.
    """

    rows: list[dict[str, Any]]
    shared: str
    notes: list[str]
    against: str = BASELINE


def read_groups(targets: Iterable[Path], *, by_commit: bool = True) -> tuple[list[Group], int]:
    """The groups below these folders, and the number of runs without a record.

    Args:
        targets: run folders, or folders that hold some.
        by_commit: runs of two commits are of two groups.

    Raises:
        FileFormatError: nothing there, or a record that cannot be read.
        UsageError: a run is there twice.
    """
    folders: dict[Path, None] = {}
    unfinished: set[Path] = set()
    for target in targets:
        found = sorted(path.parent.resolve() for path in target.rglob("record.json"))
        if not found:
            raise FileFormatError(f"{target} holds no record.json: expected a finished run, or a folder of runs")
        folders |= dict.fromkeys(found)
        unfinished |= {path.parent.resolve() for path in target.rglob("config.toml")}
    groups: dict[str, tuple[RunConfig, dict[int, Record], dict[int, Path]]] = {}
    for folder in folders:
        record = read_record(folder)
        try:
            config = replace(RunConfig(**record["config"]).canonical(), seed=0)
            seed = record["config"]["seed"]
            commit = MARKS["commit"](record) if by_commit else ""
            key = json.dumps([config.to_dict(), record["data"]["fingerprint"], commit], sort_keys=True)
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"{folder / 'record.json'} is not of this version: {error}") from error
        _, records, places = groups.setdefault(key, (config, {}, {}))
        if seed in records:
            raise UsageError(f"{places[seed]} and {folder} are the same run: leave one of them out")
        records[seed], places[seed] = record, folder
    made = [Group(config, dict(sorted(records.items())), folders) for config, records, folders in groups.values()]
    made.sort(key=lambda group: (group.config.data, group.config.method, group.config.aug != BASELINE))
    return made, len(unfinished - folders.keys())


def _short(commit: str | None) -> str:
    """Nine characters of a commit, and its '+' where files are changed."""
    return commit.removesuffix("+")[:9] + "+" * commit.endswith("+") if commit else ""


def images_seen(record: Record) -> float:
    """Of the whole training, each epoch's again."""
    return float(record["time"]["images_per_s"] * record["time"]["train_s"])


def interval(differences: list[float]) -> tuple[float, float] | None:
    """Of the mean, at 95 % by Student's t; None for a single difference."""
    count = len(differences)
    if count < 2:
        return None
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(differences) / count**0.5
    return mean(differences) - half, mean(differences) + half


def accuracy_at(record: Record, share: float) -> float:
    """Accuracy by kNN after this share of the training, linear between the evaluations of the history."""
    history = record["history"]
    epochs = [entry["epoch"] for entry in history]
    return float(np.interp(share * record["config"]["epochs"], epochs, [entry["knn"] for entry in history]))


def share_to(record: Record, accuracy: float) -> float | None:
    """Share of the training until kNN first had this accuracy, linear between the evaluations; None if it never had."""
    before, low = 0.0, 1.0
    for entry in record["history"]:
        share, value = float(entry["epoch"] / record["config"]["epochs"]), float(entry["knn"])
        if value >= accuracy:
            return share if low >= value else before + (share - before) * (accuracy - low) / (value - low)
        before, low = share, value
    return None


def compare(targets: Iterable[Path], *, by_commit: bool = True, against: str = BASELINE) -> Comparison:
    """Compares the runs below these folders with those of the augmentation `against`; see `read_groups`.

    Raises:
        FileFormatError: nothing there, or a record that cannot be read.
        UsageError: a run is there twice, or none is of that augmentation.
    """
    groups, unfinished = read_groups(targets, by_commit=by_commit)
    there = sorted({group.config.aug for group in groups})
    if against not in [BASELINE, *there]:
        raise UsageError(f"no run has the augmentation {against!r}: there are {', '.join(there)}")
    differing = [name for name in MARKS if len({group.mark(name) for group in groups}) > 1]
    options = [_non_default(group.config) for group in groups]
    common = {key: value for key, value in options[0].items() if all(other.get(key) == value for other in options)}
    rows = []
    for group, own in zip(groups, options, strict=True):
        baseline = _baseline(group, groups, against)
        costs = [other.flops for other in groups if other.mark("data") == group.mark("data")]
        budget = min((cost for cost in costs if cost), default=None)
        row: dict[str, Any] = {"method": group.config.method, "aug": group.config.aug}
        row["options"] = " ".join(f"{key}={value}" for key, value in own.items() if key not in common)
        row |= {name: group.mark(name) for name in differing} | {"seeds": len(group.records)}
        for name in ("knn", "knn_projection", "linear"):
            row |= _spread(name, [100 * record["last"][name] for record in group.records.values()])
        for name in ("knn", "linear"):
            row |= difference(name, group, baseline)
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
        share = budget / cost if budget and cost else None
        at_budget = [100 * accuracy_at(record, share) for record in group.records.values() if share is not None]
        row |= _spread("knn_at_budget", at_budget)
        rows.append(row)
    shared = [f"{name} {groups[0].mark(name)}" for name in MARKS if name not in differing]
    notes = [f"Warning: the groups differ in {name}: see its column." for name in differing]
    if unfinished:
        notes.append(f"Left out: {unfinished} unfinished, without a record.")
    return Comparison(rows, ", ".join(shared + [f"{key}={value}" for key, value in common.items()]), notes, against)


def _baseline(group: Group, groups: list[Group], against: str) -> Group | None:
    """That augmentation's group, with otherwise the same options and data, of the same commit if there is a choice."""
    same = [other for other in groups if other.config.aug == against and other.setting == group.setting]
    closest = [other for other in same if other.mark("commit") == group.mark("commit")] or same
    return closest[0] if len(closest) == 1 else None


def _spread(name: str, values: list[float]) -> dict[str, float | None]:
    """Empty where nothing was measured."""
    center, std = mean(values) if values else None, stdev(values) if len(values) > 1 else None
    return {f"{name}_mean": center, f"{name}_std": std}


def difference(name: str, group: Group, baseline: Group | None) -> dict[str, float | None]:
    """Paired by seed, in percentage points; empty for the baseline itself."""
    seeds = group.records.keys() & baseline.records.keys() if baseline and baseline is not group else set()
    pairs = [
        100 * (group.records[seed]["last"][name] - baseline.records[seed]["last"][name])
        for seed in seeds
        if baseline is not None
    ]
    low, high = interval(pairs) or (None, None)
    return {
        f"{name}_minus_baseline": mean(pairs) if pairs else None,
        f"{name}_minus_baseline_low": low,
        f"{name}_minus_baseline_high": high,
        f"{name}_pairs": len(pairs),
    }


def _non_default(config: RunConfig) -> dict[str, Any]:
    """Options that are not the plugins' and the data's defaults, but for those of `MARKS`."""
    try:
        usual = resolve(RunConfig(method=config.method, aug=config.aug, data=config.data)).flat()
    except IDAAError:  # a plugin that is not installed here: all its options are shown
        usual = {}
    told = {"method", "aug", "data", "epochs", "data_dir"}
    return {key: value for key, value in config.flat().items() if key not in told and usual.get(key) != value}
