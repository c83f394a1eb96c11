"""Finished runs side by side: groups of seeds, differences to a baseline, cost, and accuracy at equal compute."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, get_args

from scipy import stats

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.record import (
    accuracy_at,
    config_of,
    finished_runs,
    fit_flops,
    learning_curve,
    no_run,
    read_record,
    training_flops,
    unfinished_runs,
)
from idaa_lightly.bench.run.setup import resolve
from idaa_lightly.bench.schema import Record
from idaa_lightly.errors import IDAAError, UsageError

Measure = Literal["knn", "knn_projection", "linear"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
Unlabelled = Literal["rankme", "uniformity", "alignment", "embedding_spread"]
UNLABELLED: tuple[Unlabelled, ...] = get_args(Unlabelled)
"""Figures of embeddings without labels, as in `idaa_lightly.bench.schema.Evaluated`."""
BASELINE = "none"
CONFIDENCE = 0.95
MARKS: dict[str, Callable[[Record], str]] = {
    "data": lambda record: " evaluated on ".join(
        f"{data['name']} {'/'.join(part[:6] for part in data['fingerprint'])}"
        for data in (record["data"], record.get("eval_data"))
        if data is not None
    ),
    "epochs": lambda record: str(record["config"]["epochs"]),
    "commit": lambda record: _short(record["git_commit"]) or f"version {record['versions']['idaa-lightly']}",
    "plugin files": lambda record: ", ".join(
        f"{name.removeprefix('plugin ')} {text[-64:][:9]}"
        for name, text in record["versions"].items()
        if name.startswith("plugin ")
    ),
    "device": lambda record: "{count} × {name}, {torch_threads} CPU threads".format(**record["device"]),
}
"""Properties that make groups hard to compare if they differ."""
WHY = {
    "data": "and accuracies on different images cannot be compared",
    "epochs": "and a longer training alone can raise accuracy",
    "commit": "and a change of the code can change results",
    "plugin files": "and a change of the code can change results",
    "device": "so their times cannot be compared",
}
"""Reasons why a difference in one of `MARKS` matters."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        config: Their configuration, with seed 0.
        records: By seed.
        folders: By seed.
    """

    config: RunConfig
    records: Mapping[int, Record]
    folders: Mapping[int, Path]

    def values(self, value: Callable[[Record], float]) -> list[float]:
        """Return a value of each run."""
        return [value(record) for record in self.records.values()]

    def percent(self, measure: Measure) -> list[float]:
        """Return the accuracy in percent of each run after its last epoch. Runs without labels are left out."""
        return [100 * value for value in self.last(measure)]

    def last(self, name: Measure | Unlabelled) -> list[float]:
        """Return what was measured after the last epoch of each run. Runs without it are left out."""
        return [record["last"][name] for record in self.records.values() if name in record["last"]]

    @property
    def labelled(self) -> bool:
        """True if accuracies were measured."""
        return bool(self.last("knn"))

    @property
    def seconds(self) -> float:
        """Mean time of training, in seconds."""
        return mean(self.values(lambda record: record["time"]["train_s"]))

    @property
    def flops(self) -> float | None:
        """Mean operations of the training with its attacks and of the fitting before it. None if not recorded."""
        if not all(self.values(training_flops)):
            return None
        return mean(self.values(lambda record: fit_flops(record) + training_flops(record)))

    @property
    def clock(self) -> tuple[str, str]:
        """Data and device. Times of two groups can be compared if this is equal."""
        return self.mark("data"), self.mark("device")

    @property
    def setting(self) -> str:
        """Text that is equal for a group and its baseline."""
        config = replace(self.config, aug=BASELINE, set={**self.config.set, "aug": {}})
        return json.dumps([config.to_dict(), self.mark("data")], sort_keys=True)

    def mark(self, name: str) -> str:
        """Return what its runs have for one of `MARKS`."""
        return " + ".join(sorted(set(map(MARKS[name], self.records.values()))))


MIXED = (
    "Warning: learning curves of schema 2 and older are on the test images, and later ones on the validation images, "
    "so kNN at equal operations cannot be compared between them."
)
NAMED = 10
"""Unfinished runs that are named, at most."""


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


def read_groups(targets: Iterable[Path], *, by_commit: bool = True) -> tuple[list[Group], list[Path]]:
    """Return the groups below these directories, and the directories of runs without a record.

    Args:
        targets: Run directories, or directories that hold some.
        by_commit: Runs of different commits are in different groups.

    Raises:
        FileFormatError: There is no run, or a record cannot be read.
        UsageError: A run is there twice.
    """
    folders: dict[Path, None] = {}
    unfinished: set[Path] = set()
    for target in targets:
        found = [run.resolve() for run in finished_runs(target)]
        if not found:
            raise no_run(target)
        folders |= dict.fromkeys(found)
        unfinished |= {run.resolve() for run in unfinished_runs(target)}
    groups: dict[str, tuple[RunConfig, dict[int, Record], dict[int, Path]]] = {}
    for folder in folders:
        record = read_record(folder)
        own = config_of(record)
        config, seed = replace(own.canonical(), seed=0), own.seed
        commit = MARKS["commit"](record) + MARKS["plugin files"](record) if by_commit else ""
        key = json.dumps(
            [config.to_dict(), MARKS["data"](record), record["data"]["fingerprint"], commit], sort_keys=True
        )
        _, records, places = groups.setdefault(key, (config, {}, {}))
        if seed in records:
            raise UsageError(f"{places[seed]} and {folder} are the same run: leave one of them out")
        records[seed], places[seed] = record, folder
    made = [Group(config, dict(sorted(records.items())), folders) for config, records, folders in groups.values()]
    made.sort(key=lambda group: (group.config.data, group.config.method, group.config.aug != BASELINE))
    return made, sorted(unfinished)


def near(path: Path) -> Path:
    """Return a path relative to the working directory if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def left_out(unfinished: list[Path]) -> str:
    """Return a sentence that names runs without a record.

    Args:
        unfinished: Their directories, one or more.
    """
    names = [str(near(path)) for path in unfinished[:NAMED]]
    more = f" and {len(unfinished) - NAMED} more" * (len(unfinished) > NAMED)
    return f"Left out: {len(unfinished)} unfinished, without a record: {', '.join(names)}{more}."


def _short(commit: str | None) -> str:
    """Return nine characters of a commit, and its '+' if files were changed."""
    return commit.removesuffix("+")[:9] + "+" * commit.endswith("+") if commit else ""


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
        UsageError: A run is there twice, or none is of that augmentation.
    """
    groups, unfinished = read_groups(targets, by_commit=by_commit)
    there = sorted({group.config.aug for group in groups})
    if against not in [BASELINE, *there]:
        raise UsageError(f"no run has the augmentation {against!r}: there are {', '.join(there)}")
    differing = [name for name in MARKS if len({group.mark(name) for group in groups}) > 1]
    options = _options([group.config for group in groups])
    common = {key: value for key, value in options[0].items() if all(other.get(key) == value for other in options)}
    rows = []
    for group, own in zip(groups, options, strict=True):
        baseline = _baseline(group, groups, against)
        costs = [other.flops for other in groups if other.mark("data") == group.mark("data")]
        budget = min((cost for cost in costs if cost), default=None)
        row: dict[str, Any] = {"method": group.config.method, "aug": group.config.aug}
        row["options"] = " ".join(f"{key}={value}" for key, value in own.items() if key not in common)
        row |= {name: group.mark(name) for name in differing} | {"seeds": len(group.records)}
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
    shared = [f"{name} {mark}" for name in MARKS if name not in differing and (mark := groups[0].mark(name))]
    notes = [_warning(name, groups) for name in differing]
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


def _warning(mark: str, groups: list[Group]) -> str:
    """Return a sentence that says which values of a mark differ among the groups, and why that matters."""
    found = sorted({group.mark(mark) or "none" for group in groups})
    values = ", ".join(found) if len(found) < 5 else f"{len(found)} values"
    return f"Warning: the groups differ in {mark} ({values}), {WHY[mark]}."


def _baseline(group: Group, groups: list[Group], against: str) -> Group | None:
    """Return that augmentation's group with otherwise the same options and data, of the same commit if possible."""
    same = [other for other in groups if other.config.aug == against and other.setting == group.setting]
    closest = [other for other in same if other.mark("commit") == group.mark("commit")] or same
    return closest[0] if len(closest) == 1 else None


def _spread(name: str, values: list[float]) -> dict[str, float | None]:
    """Return mean and standard deviation by name; None where nothing was measured."""
    center, std = mean(values) if values else None, stdev(values) if len(values) > 1 else None
    return {f"{name}_mean": center, f"{name}_std": std}


def difference(measure: Measure, group: Group, baseline: Group | None) -> dict[str, float | None]:
    """Return the mean difference to the baseline in points, paired by seed, with its interval.

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
    """Return the options of each configuration that are not the defaults, in it or in another one of its method.

    An option of the augmentation must differ in a configuration of the same method and augmentation.
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
