"""Plots of a report as inline SVG, with the colours and fonts of the page, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from idaa_lightly.bench.compare.forest import Contrast, description, forest

COLOURS = 8
DASHES = ("solid", (0, (5, 2)), (0, (1.2, 1.8)), (0, (6, 2, 1.2, 2)))
MOST_POINTS = 200  # of a line: more cannot be seen
INK, FAINT, SERIES = "#0f0f90", "#0f0f91", "#0f0f0"  # stand in for CSS variables, which matplotlib does not know
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names may hold dollar signs
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Args:
        label: Name of the line.
        groups: Numbers of the groups that it shows. The page hides the line when it hides all of them.
        style: Colour `style % COLOURS` and dashes `style // COLOURS`.
        x: Places, (N).
        y: Means over seeds, (N).
        std: Standard deviations over seeds, (N); 0 for a single seed.
    """

    label: str
    groups: tuple[int, ...]
    style: int
    x: Sequence[float]
    y: Sequence[float]
    std: Sequence[float]

    @property
    def colour(self) -> str:
        """Placeholder of its colour in the palette of the page."""
        return f"{SERIES}{self.style % COLOURS}"

    @property
    def dashes(self) -> int:
        """Number of its dash pattern."""
        return self.style // COLOURS % len(DASHES)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation, which is 0 for a single value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def logarithmic(values: Iterable[Any]) -> bool:
    """Return True if positive numbers are spaced more evenly on a logarithmic axis than on a linear one."""
    places = sorted(set(values))
    if len(places) < 3 or places[0] <= 0:
        return False
    gaps = [b - a for a, b in pairwise(places)]
    ratios = [math.log(b / a) for a, b in pairwise(places)]
    return bool(max(ratios) / min(ratios) < max(gaps) / min(gaps))


def curves(lines: list[Line], name: str, xlabel: str, ylabel: str, *, budget: float | None = None) -> Markup:
    """Draw lines with a band of ± one standard deviation.

    Args:
        lines: One or more lines.
        name: Name of the plot, in letters and digits, unique on the page.
        xlabel: Quantity of x, with its unit.
        ylabel: Quantity of y, with its unit.
        budget: Place of a vertical line.
    """
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(4.5, 3.0), layout="constrained")
        axis = figure.subplots()
        for line in lines:
            kept = np.unique(np.linspace(0, len(line.x) - 1, MOST_POINTS).round().astype(int))
            x, y, std = (np.asarray(part, dtype=float)[kept] for part in (line.x, line.y, line.std))
            _line(axis, line, x, y, marker="o" if len(x) <= 20 else None)
            if std.any():
                gid = _gid(line)
                axis.fill_between(x, y - std, y + std, color=line.colour, alpha=0.15, linewidth=0, gid=gid)
        if budget is not None:
            axis.axvline(budget, color=INK, linewidth=0.8, linestyle=DASHES[2])
        axis.set(xlabel=xlabel, ylabel=ylabel)
        return _inline(figure, name, lines, f"{ylabel} by {xlabel}")


def differences(contrasts: Sequence[Contrast], styles: Sequence[int], name: str) -> Markup:
    """Draw a forest plot.

    Args:
        contrasts: Rows, from top to bottom.
        styles: Styles of the rows, as for `Line`.
        name: Name of the plot; see `curves`.
    """
    with mpl.rc_context(SETTINGS):
        figure = forest(contrasts, ink=INK, colours=[f"{SERIES}{style % COLOURS}" for style in styles])
        return _inline(figure, name, [], f"Differences in points: {description(contrasts)}")


def sensitivity(
    lines: list[Line], values: Sequence[Any], name: str, option: str, ylabel: str, levels: Sequence[Line] = ()
) -> Markup:
    """Draw lines over the values of an option, with bars of ± one standard deviation.

    Args:
        lines: Lines whose x are places in `values`.
        values: Values of the option, in order. Numbers are placed by value, others evenly.
        name: Name of the plot; see `curves`.
        option: Name of the option.
        ylabel: Quantity of y, with its unit.
        levels: Lines drawn across the plot, at the y of their one point.
    """
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = [float(value) for value in values] if numbers else [float(index) for index in range(len(values))]
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(4.5, 3.0), layout="constrained")
        axis = figure.subplots()
        for line in lines:
            x = [places[int(index)] for index in line.x]
            _line(axis, line, x, line.y, marker="o")
            bars = axis.errorbar(x, line.y, yerr=line.std, fmt="none", ecolor=line.colour, elinewidth=1, capsize=3)
            for part in bars.get_children():
                part.set_gid(_gid(line))
        for line in levels:
            axis.axhline(line.y[0], gid=_gid(line), color=line.colour, linewidth=1, linestyle=DASHES[line.dashes])
        if numbers and logarithmic(places):
            axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks(places, [_short(value) for value in values])
        axis.margins(x=0.08)
        axis.set(xlabel=option, ylabel=ylabel)
        return _inline(figure, name, [*lines, *levels], f"{ylabel} by {option}")


def _line(axis: Any, line: Line, x: Any, y: Any, marker: str | None) -> None:
    dashes = DASHES[line.dashes]
    axis.plot(x, y, color=line.colour, linestyle=dashes, marker=marker, markersize=3.5, linewidth=1.6, gid=_gid(line))


def _gid(line: Line) -> str:
    return "-".join(["lines", *map(str, line.groups)])


def _short(value: Any) -> str:
    """Return a value as text that fits below an axis."""
    text = f"{value:g}" if isinstance(value, float) else "not set" if value is None else str(value)
    return text if len(text) <= 14 else f"{text[:6]}…{text[-7:]}"


def _inline(figure: Figure, name: str, lines: list[Line], title: str) -> Markup:
    """Return the SVG with the colours and fonts of the page, and identifiers that are unique on it."""
    made = io.StringIO()
    figure.savefig(made, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = made.getvalue()
    size = re.search(r'viewBox="([^"]*)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = body.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    body = re.sub(rf"{SERIES}(\d)", r"var(--s\1)", body)
    body = re.sub(r'<g id="lines-([\d-]+)"', lambda found: f'<g data-groups="{found[1].replace("-", " ")}"', body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", body)
    body = " ".join(body.split())
    ends = "; ".join(f"{line.label}: {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in lines if len(line.y) > 1)
    alt = escape(f"{title}. {ends}" if ends else title)
    box = size[1] if size else "0 0 324 216"
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{alt}">{body}')
