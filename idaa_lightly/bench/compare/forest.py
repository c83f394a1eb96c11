"""Forest plots: differences with their 95 % confidence intervals, one row each."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from idaa_lightly.bench.compare.comparison import Comparison
from idaa_lightly.bench.compare.groups import Measure
from idaa_lightly.bench.compare.text import ALL_TITLES, TITLES
from idaa_lightly.files import atomic_write

MEASURES: tuple[Measure, ...] = ("knn", "linear")
INK, SURE, UNSURE = "#222222", "#1f5fa8", "#8a8a8a"
ROW, MARGIN = 0.3, 0.9  # inches
WRAP = 56  # characters of a label in a line
Points = tuple[float, float | None, float | None]
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "forest", "font.size": 9, "text.parse_math": False}


@dataclass(frozen=True)
class Contrast:
    """A difference of two groups of runs, paired by seed.

    Attributes:
        label: Name of the row.
        points: By measure or other figure, the mean difference (in points for accuracies) and both ends of its 95 %
            interval (None for one pair).
        seeds: Number of pairs.
        group: Number of the group that the row shows, if any. The report hides both together.
    """

    label: str
    points: Mapping[str, Points]
    seeds: int
    group: int | None = None


def contrast(label: str, numbers: Mapping[str, Any]) -> Contrast | None:
    """Return a row of differences, in the form in which `difference` returns them; None if there are none."""
    found = {measure: _points(numbers, measure) for measure in MEASURES}
    points: dict[str, Points] = {measure: part for measure, part in found.items() if part is not None}
    return Contrast(label, points, numbers["knn_pairs"]) if points else None


def contrasts_of(comparison: Comparison, labels: Sequence[str] | None = None) -> list[Contrast]:
    """Return the differences of a comparison's groups to their baselines.

    Args:
        comparison: Groups that are their own baseline, or have none, are left out.
        labels: Names of the rows. Default: method, augmentation and options.
    """
    made = []
    for index, row in enumerate(comparison.rows):
        found = {measure: _points(row, measure) for measure in MEASURES}
        points: dict[str, Points] = {measure: part for measure, part in found.items() if part is not None}
        label = labels[index] if labels else " ".join(filter(None, [f"{row['method']} × {row['aug']}", row["options"]]))
        if points:
            made.append(Contrast(label, points, row["knn_pairs"], index))
    return made


def _points(row: Mapping[str, Any], measure: Measure) -> Points | None:
    center, low, high = (row[f"{measure}_minus_baseline{end}"] for end in ("", "_low", "_high"))
    return None if center is None else (center, low, high)


def forest(contrasts: Sequence[Contrast], *, ink: str = INK, colours: Sequence[str] = ()) -> Figure:
    """Draw a forest plot with a panel per measure.

    Args:
        contrasts: Rows, from top to bottom.
        ink: Colour of the line at 0.
        colours: Colours of the rows. Default: blue, or grey with a hollow point for intervals that contain 0.
    """
    measures = [name for name in ALL_TITLES if any(name in item.points for item in contrasts)]
    names = [textwrap.fill(f"{item.label}  (n = {item.seeds})", WRAP) for item in contrasts]
    lines = sum(1 + 0.5 * name.count("\n") for name in names)
    figure = Figure(figsize=(8.6, MARGIN + ROW * lines), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axis, measure in zip(panels, measures, strict=True):
        axis.axvline(0, color=ink, linewidth=0.8)
        for place, item in enumerate(contrasts):
            if measure in item.points:
                _row(axis, place, item, item.points[measure], colours[place] if colours else "")
        axis.set(xlabel=f"Δ {ALL_TITLES[measure]}{', points' * (measure in TITLES)}", ylim=(len(contrasts) - 0.4, -0.6))
        axis.locator_params(axis="x", nbins=6)  # so that the numbers keep apart
        axis.grid(axis="x", linewidth=0.4, alpha=0.5)
        axis.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    panels[0].set_yticks(range(len(contrasts)), names)
    return figure


def _row(axis: Any, place: int, item: Contrast, points: Points, colour: str) -> None:
    center, low, high = points
    shown = low is not None and high is not None and (low > 0 or high < 0)
    face = colour or (SURE if shown else "white")
    colour = colour or (SURE if shown else UNSURE)
    gid = None if item.group is None else f"lines-{item.group}"
    if low is not None and high is not None:
        axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", gid=gid)
    axis.plot([center], [place], marker="o", markersize=5, color=colour, markerfacecolor=face, linestyle="", gid=gid)


def save_forest(contrasts: Sequence[Contrast], path: Path) -> None:
    """Write a forest plot as SVG or PNG, by the ending of the path.

    An SVG holds the figures as JSON in its description, so that a program can check it; see `figures_of`.
    """
    with mpl.rc_context(SETTINGS), atomic_write(path) as temporary:
        metadata = {"Date": None, "Creator": None, "Description": description(contrasts)}
        figure = forest(contrasts)
        figure.savefig(temporary, dpi=150, metadata=metadata if path.suffix == ".svg" else None, facecolor="white")


def description(contrasts: Sequence[Contrast]) -> str:
    """Return the figures of a forest plot as JSON: by label, the number of seeds and the points of each measure."""
    content = {
        item.label: {"seeds": item.seeds}
        | {
            measure: [None if value is None else round(value, 2) for value in points]
            for measure, points in item.points.items()
        }
        for item in contrasts
    }
    return json.dumps(content, ensure_ascii=False)
