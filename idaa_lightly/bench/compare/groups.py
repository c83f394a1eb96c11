"""Finished runs in groups that differ in their seed only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Literal, get_args

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.record import (
    config_of,
    finished_runs,
    fit_flops,
    no_run,
    read_record,
    training_flops,
    unfinished_runs,
)
from idaa_lightly.bench.schema import Record
from idaa_lightly.errors import UsageError

Measure = Literal["knn", "knn_projection", "linear"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
Unlabelled = Literal["rankme", "uniformity", "alignment", "embedding_spread"]
UNLABELLED: tuple[Unlabelled, ...] = get_args(Unlabelled)
"""Figures of embeddings without labels, as in `idaa_lightly.bench.schema.Evaluated`."""
BASELINE = "none"
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
        """Data and device, or devices with their number of runs. Times of groups can be compared if this is equal."""
        counts = Counter(map(MARKS["device"], self.records.values()))
        device = " + ".join(f"{name} ({count} runs)" for name, count in sorted(counts.items()))
        return self.mark("data"), next(iter(counts)) if len(counts) == 1 else device

    @property
    def setting(self) -> str:
        """Text that is equal for a group and its baseline."""
        config = replace(self.config, aug=BASELINE, set={**self.config.set, "aug": {}})
        return json.dumps([config.to_dict(), self.mark("data")], sort_keys=True)

    def mark(self, name: str) -> str:
        """Return what its runs have for one of `MARKS`."""
        return " + ".join(sorted(set(map(MARKS[name], self.records.values()))))


NAMED = 10
"""Unfinished runs that are named, at most."""


def read_groups(targets: Iterable[Path], *, by_commit: bool = True) -> tuple[list[Group], list[Path]]:
    """Return the groups below these directories, and the directories of runs without a record.

    Args:
        targets: Run directories, or directories that hold some.
        by_commit: Runs of different commits are in different groups.

    Raises:
        FileFormatError: There is no run, or a record cannot be read.
        UsageError: A run appears twice.
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
