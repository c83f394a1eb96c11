"""Learning curves of groups of runs, and accuracy over the cost of training."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, TypeVar, cast

from annotated_types import Interval
from markupsafe import Markup

from idaa_lightly.bench.compare.groups import BASELINE, MARKS, Group, Measure, near
from idaa_lightly.bench.compare.text import UNLABELLED_TITLES
from idaa_lightly.bench.record import fit_flops, learning_curve
from idaa_lightly.bench.report.svg import COLOURS, Line, curves, spread
from idaa_lightly.errors import FileFormatError
from idaa_lightly.options import Option

T = TypeVar("T")
K = TypeVar("K")
UNITS = {15: "P", 12: "T", 9: "G", 6: "M"}
LOGGED = re.compile(r"(loss)/(\w+)_epoch|(identity)/(\w+)", re.ASCII)
"""Columns of metrics.csv that are drawn: mean losses of epochs, and identity figures."""
STEP = Option("step", Annotated[int, Interval(ge=0, lt=10**15)])
IDENTITY = {"lost": ("identities lost, %", 100), "information": ("log N − L_NCE, nats", 1)}
"""Figures that are logged in training: name with unit, and factor to that unit."""
MEASURES: dict[Measure, tuple[str, str]] = {"knn": ("kNN", "kNN top-1, %"), "linear": ("linear", "linear top-1, %")}


@dataclass(frozen=True)
class Shown:
    """A group as the page shows it.

    Attributes:
        index: Number of the group.
        group: The runs.
        label: Name that tells it from the others.
        style: Style of its lines; see `Line`.
    """

    index: int
    group: Group
    label: str
    style: int

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of this group as a tuple, like `Figure.groups`."""
        return (self.index,)

    def line(self, x: Sequence[float], columns: Iterable[Sequence[float]]) -> Line:
        """Return the line of means and standard deviations of columns that have a value per seed."""
        return line(self.label, self.groups, self.style, x, columns)


@dataclass(frozen=True)
class Figure:
    """A plot or picture.

    Attributes:
        content: SVG or image.
        caption: Text above it.
        groups: Numbers of the groups that it shows.
        lines: Lines of a plot.
        legend: True if the lines need a legend of their own.
    """

    content: Markup
    caption: str
    groups: tuple[int, ...]
    lines: Sequence[Line] = ()
    legend: bool = False


@dataclass(frozen=True)
class Block:
    """Groups that share figures: all on one data set, or one method on it if there are many."""

    title: str
    groups: list[Shown]


def blocks(groups: list[Group]) -> list[Block]:
    """Return the groups in blocks, with distinct names and styles. Groups of `none` have neutral styles."""
    names = _names(groups)
    counts = Counter(group.mark("data") for group in groups)
    found: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        data = group.mark("data")
        title = data if counts[data] <= COLOURS else f"{group.config.method} on {data}"
        found.setdefault(title, []).append(index)
    made = []
    for title, members in found.items():
        count, items = {True: 0, False: 0}, []
        for index in members:
            neutral = groups[index].config.aug == BASELINE
            own = COLOURS * count[True] if neutral else style(count[False])
            count[neutral] += 1
            items.append(Shown(index, groups[index], names[index], own))
        made.append(Block(title, items))
    return made


def _names(groups: list[Group]) -> list[str]:
    """Return names of method and augmentation, with the options that differ among their groups on the same data.

    A value that more than half of three or more such groups share is left out. Groups that still have one name get
    their number.
    """
    options = [group.config.flat() | {mark: group.mark(mark) for mark in MARKS} for group in groups]
    pairs = [(group.config.method, group.config.aug, group.config.data) for group in groups]
    several = len({data for *_, data in pairs}) > 1
    names = []
    for pair, own in zip(pairs, options, strict=True):
        others = [other for other, theirs in zip(options, pairs, strict=True) if theirs == pair]
        telling = [name for name, value in own.items() if any(other.get(name) != value for other in others)]
        if len(telling) > 1 and "data" in telling:  # which limit_train changes, too
            telling.remove("data")
        shares = {name: sum(other.get(name) == own[name] for other in others) / len(others) for name in telling}
        usual = {name for name, share in shares.items() if share > 0.5 and len(others) > 2}
        parts = [f"{name}={own[name]}" for name in telling if name not in usual]
        names.append(" ".join([f"{pair[0]} × {pair[1]}", *parts]) + (f" on {pair[2]}" if several else ""))
    return [name if names.count(name) == 1 else f"{name}, group {number}" for number, name in enumerate(names, 1)]


def line(
    label: str, groups: tuple[int, ...], style: int, x: Sequence[float], columns: Iterable[Sequence[float]]
) -> Line:
    """Return the line of means and standard deviations of columns that have a value per seed."""
    means, stds = zip(*map(spread, columns), strict=True)
    return Line(label, groups, style, x, means, stds)


def style(number: int) -> int:
    """Return the style with this number among those that are not neutral."""
    return number + number // (COLOURS - 1) + 1


def accuracy_curve(groups: list[Shown]) -> Figure:
    """Return the figure of kNN accuracy over epochs."""
    lines = [item.line(*_history(item.group)) for item in groups]
    plot = curves(lines, f"knn{groups[0].index}", "epoch", MEASURES["knn"][1])
    return figure(plot, "kNN accuracy", lines)


def unlabelled_curves(groups: list[Shown]) -> list[Figure]:
    """Return figures of what needs no labels over epochs, with the groups whose records hold it."""
    made = []
    for number, (name, title) in enumerate(UNLABELLED_TITLES.items()):
        lines = []
        for item in groups:
            histories = [cast(Any, record["history"]) for record in item.group.records.values()]
            seeds = [{entry["epoch"]: entry[name] for entry in history if name in entry} for history in histories]
            epochs, columns = _shared(seeds)
            lines += [item.line(epochs, columns)] if epochs else []
        if lines:
            plot = curves(lines, f"unlabelled{groups[0].index}x{number}", "epoch", title)
            made.append(figure(plot, f"{title}, without labels", lines))
    return made


def time_curves(groups: list[Shown], everyone: list[Shown]) -> list[Figure]:
    """Return figures of kNN accuracy over training time, one per device. The shortest time of all groups is marked."""
    made = []
    for clock, part in _facets(groups, lambda item: item.group.clock).items():
        budget = min(item.group.seconds for item in everyone if item.group.clock == clock)
        costs = [(item, 0.0, item.group.seconds) for item in part]
        made.append(_by_cost("time", f"kNN accuracy by time, on {clock[1]}", "training, s", costs, budget))
    return made


def flops_curves(groups: list[Shown], everyone: list[Shown], missing: list[str]) -> list[Figure]:
    """Return the figure of kNN accuracy over training FLOPs, if there is one. The least FLOPs of all are marked.

    Groups without recorded FLOPs are added to `missing`.
    """
    costs = {item.index: flops for item in everyone if (flops := item.group.flops)}
    part = [item for item in groups if item.index in costs]
    missing += [f"{item.label}: no FLOPs in a record, so no accuracy by FLOPs." for item in groups if item not in part]
    if not part:
        return []
    data = part[0].group.mark("data")
    budget = min(costs[item.index] for item in everyone if item.index in costs and item.group.mark("data") == data)
    most = max(costs[item.index] for item in part)
    power, unit = next(((10**power, unit) for power, unit in UNITS.items() if most >= 10**power), (1, ""))
    scaled = [(item, mean(item.group.values(fit_flops)) / power, costs[item.index] / power) for item in part]
    return [_by_cost("flops", "kNN accuracy by FLOPs", f"training, {unit}FLOP", scaled, budget / power)]


def _by_cost(name: str, caption: str, xlabel: str, costs: list[tuple[Shown, float, float]], budget: float) -> Figure:
    """Return the figure of accuracy over a cost that grows evenly during training, from the first cost to the second.

    Args:
        name: Name of the plot, which is unique on the page.
        caption: Text above it.
        xlabel: Label of the axis of costs.
        costs: Groups with their costs before and after the training.
        budget: Cost to mark.
    """
    lines = []
    for item, start, end in costs:
        epochs, columns = _history(item.group)
        lines.append(item.line([start + (end - start) * epoch / epochs[-1] for epoch in epochs], columns))
    plot = curves(lines, f"{name}{costs[0][0].index}", xlabel, MEASURES["knn"][1], budget=budget)
    return figure(plot, caption, lines)


def logged_curves(groups: list[Shown], missing: list[str]) -> tuple[list[Figure], list[Figure]]:
    """Return figures of losses and of identity over epochs, one per method and quantity, from each metrics.csv.

    Files that cannot be read are added to `missing`.
    """
    losses: list[Figure] = []
    others: list[Figure] = []
    for method, part in _facets(groups, lambda item: item.group.config.method).items():
        logged = [(item, _logged(item, missing)) for item in part]
        names = {name for _, found in logged for name in found}
        for number, name in enumerate(sorted(names, key=lambda name: (name != "loss/total", name))):
            kind, _, rest = name.partition("/")
            views, _, measure = rest.rpartition("_")
            title, scale = IDENTITY.get(measure, (measure, 1)) if kind == "identity" else (f"{rest} loss", 1)
            lines = []
            for item, found in logged:
                if name in found:
                    epochs, columns = found[name]
                    lines.append(item.line(epochs, [[scale * value for value in values] for values in columns]))
            plot = curves(lines, f"logged{part[0].index}x{number}", "epoch", title)
            caption = f"{title} of {method}" if kind == "loss" else f"{title}: {views} view of {method}"
            (losses if kind == "loss" else others).append(figure(plot, caption, lines))
    return losses, others


def figure(plot: Markup, caption: str, lines: Sequence[Line], *, legend: bool = False) -> Figure:
    """Return a figure with the groups that its lines show."""
    return Figure(plot, caption, tuple(sorted({group for line in lines for group in line.groups})), lines, legend)


def _facets(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _history(group: Group) -> tuple[list[int], list[list[float]]]:
    """Return the epochs at which all seeds were evaluated, and their accuracies in percent."""
    return _shared(
        [{epoch: 100 * value for epoch, value in learning_curve(record)} for record in group.records.values()]
    )


def _shared(seeds: list[dict[int, float]]) -> tuple[list[int], list[list[float]]]:
    """Return the epochs that all seeds have, and at each the values of the seeds."""
    epochs = sorted(set.intersection(*map(set, seeds)))
    return epochs, [[seed[epoch] for seed in seeds] for epoch in epochs]


def _logged(item: Shown, missing: list[str]) -> dict[str, tuple[list[float], list[tuple[float, ...]]]]:
    """Return logged quantities by name: epochs, and at each the values of all seeds that have a metrics.csv."""
    seeds, without = [], []
    for seed, folder in sorted(item.group.folders.items()):
        try:
            seeds.append(read_metrics(near(folder) / "metrics.csv"))
        except FileNotFoundError:
            without.append(str(seed))
        except FileFormatError as error:
            missing.append(f"{error}: its losses are left out.")
    if without:
        missing.append(f"{item.label}: no metrics.csv, so no losses, of seed {', '.join(without)}.")
    made = {}
    for name in set.intersection(*map(set, seeds)) if seeds else set():
        steps = sorted(set.intersection(*(set(seed[name]) for seed in seeds)))
        last = max(step for seed in seeds for values in seed.values() for step in values)
        epochs = [(item.group.config.epochs or 1) * step / last for step in steps]
        if steps:
            made[name] = epochs, [tuple(seed[name][step] for seed in seeds) for step in steps]
    return made


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Return mean losses of epochs and all identity figures, by name and by the number of steps done.

    Raises:
        FileNotFoundError: There is no such file.
        FileFormatError: It holds no losses, or values that are not finite numbers.
    """
    found: dict[str, dict[int, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, restkey=""):
                for column, value in row.items():
                    if value and (match := LOGGED.fullmatch(column)):
                        step = STEP.parse(row.get("step")) + 1
                        if not math.isfinite(number := float(value)):
                            raise ValueError(f"{column} is {value} after step {step}, but expected a finite number")
                        found.setdefault(f"{match[1] or match[3]}/{match[2] or match[4]}", {})[step] = number
        if not any(name.startswith("loss/") for name in found):
            raise ValueError("no loss/..._epoch in it")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise FileFormatError(f"{path} cannot be read ({error})") from error
    return found
