"""Finished semi-supervised runs side by side: a table over labels, and accuracy against epochs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any, cast

from matplotlib.figure import Figure

from idaa_lightly.bench.arms import arms, images_of
from idaa_lightly.bench.compare.comparison import interval
from idaa_lightly.bench.compare.text import markdown, mean_and_std
from idaa_lightly.bench.record import fit_flops, training_flops
from idaa_lightly.bench.run.figures import save_figure
from idaa_lightly.bench.schema import Record
from idaa_lightly.bench.semi.config import SemiConfig

FIXMATCH = "fixmatch × none"
"""Arm that differences refer to, with the same other settings."""


def _settings(record: Record) -> dict[str, object]:
    """Return the configuration without seed and labels, which span the table."""
    flat = SemiConfig(**cast(dict[str, Any], record["config"])).canonical().flat()
    return {key: value for key, value in flat.items() if key not in ("seed", "labels")} | {"set": images_of(record)}


def table(records: Iterable[Record]) -> str:
    """Return a Markdown table of accuracies: mean ± standard deviation over seeds, and differences paired by seed.

    The operations are those of a run, with fitting the augmentation.

    Args:
        records: Records from `read_records`.
    """
    every = list(records)
    labels = sorted({run["labelled"]["count"] for run in every})
    header = ["top-1, %", "TFLOP", *(f"{count} labels{part}" for count in labels for part in ("", " − FixMatch"))]
    rows = []
    for name, runs in arms(every, _arm, _settings).items():
        base = [run for run in every if _arm(run) == FIXMATCH and _common(run) == _control(runs[0])]
        cells = (_cells(_by_seed(runs, count), _by_seed(base, count)) for count in labels)
        cost = mean(training_flops(run) + fit_flops(run) for run in runs) / 1e12
        rows.append([name, f"{cost:.2f}", *(cell for pair in cells for cell in pair)])
    return markdown(header, rows)


def _arm(record: Record) -> str:
    return f"{record['config']['method']} × {record['config']['aug']}"


def _control(record: Record) -> dict[str, object]:
    """Return the common settings of the runs that a run is compared with.

    Runs without the consistency loss are compared with FixMatch at its usual weight.
    """
    settings = _common(record)
    return settings | ({"method.weight": 1.0} if settings.get("method.weight") == 0 else {})


def _common(record: Record) -> dict[str, object]:
    """Return the settings without the method and the augmentation."""
    return {key: value for key, value in _settings(record).items() if key != "method" and not key.startswith("aug")}


def _by_seed(runs: Iterable[Record], labels: int) -> dict[int, float]:
    return {run["config"]["seed"]: 100 * run["last"]["accuracy"] for run in runs if run["labelled"]["count"] == labels}


def _cells(own: dict[int, float], base: dict[int, float]) -> tuple[str, str]:
    """Return mean ± standard deviation with the number of seeds, and the difference with its 95 % interval."""
    if not own:
        return "", ""
    accuracy = f"{mean_and_std(list(own.values()))} ({len(own)})"
    differences = [own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())]
    if not differences or own == base:
        return accuracy, ""
    bounds = interval(differences)
    words = f" [{bounds[0]:+.2f}, {bounds[1]:+.2f}]" if bounds else ""
    return accuracy, f"{mean(differences):+.2f}{words}"


def save_convergence(records: Iterable[Record], path: Path) -> None:
    """Draw accuracy on validation images against epochs, the mean over seeds, in a panel for each number of labels.

    Args:
        records: Records from `read_records`.
        path: PNG or SVG to write.
    """
    found = arms(records, _arm, _settings)
    labels = sorted({run["labelled"]["count"] for runs in found.values() for run in runs})
    figure = Figure(figsize=(5 * len(labels), 3.8), layout="constrained")
    for axis, count in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        for name, runs in found.items():
            curves: dict[float, list[float]] = defaultdict(list)
            for run in runs:
                for entry in run["history"] if run["labelled"]["count"] == count else ():
                    if (accuracy := entry.get("accuracy_validation")) is not None:
                        curves[entry["epoch"]].append(100 * accuracy)
            if curves:
                axis.plot(list(curves), [mean(values) for values in curves.values()], marker="o", ms=3, label=name)
        axis.set(xlabel="epoch", ylabel="top-1 on validation images, %", title=f"{count} labels")
        if axis.lines:  # With labels for all images, none are left to validate on.
            axis.legend()
    save_figure(figure, path)
