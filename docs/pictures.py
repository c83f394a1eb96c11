"""Draw the diagrams and the bar chart of the documentation into docs/pictures.

python docs/pictures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
COSTS = HERE.parent / "benchmarks" / "results" / "step_cost_forms.json"
INK, CLEAN, ATTACK, PLAIN = "#222222", "#d5e5f7", "#fbdcc8", "#eeeeee"
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "pictures", "font.size": 9, "text.parse_math": False}
Place = tuple[float, float]


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of a size in inches, and axes whose unit is an inch."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return figure, axis


def box(axis: Axes, at: Place, text: str, colour: str = PLAIN, width: float = 1.0, height: float = 0.44) -> None:
    """Draw a box with text around a centre."""
    corner = at[0] - width / 2, at[1] - height / 2
    axis.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.06", fc=colour, ec=INK, lw=0.8))
    axis.text(*at, text, ha="center", va="center", color=INK)


def arrow(axis: Axes, *points: Place, dashed: bool = False) -> None:
    """Draw lines through points, with an arrow head at the last one."""
    style: Any = {"color": INK, "linewidth": 0.9, "linestyle": "--" if dashed else "-"}
    axis.plot(*zip(*points[:-1], strict=True), **style)
    axis.add_patch(FancyArrowPatch(*points[-2:], arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0, **style))


def note(axis: Axes, at: Place, text: str, **options: Any) -> None:
    """Write a short text."""
    axis.text(*at, text, **{"ha": "center", "va": "center", "color": INK, "fontsize": 8.5} | options)


def pipeline() -> Figure:
    """Return the pipeline of IDAA: two views, the split of the first, the search, and both losses."""
    figure, axis = canvas(7.6, 3.9)
    box(axis, (0.6, 2.65), "image", width=0.8)
    for y, name in ((3.2, "view x1"), (2.1, "view x0")):
        box(axis, (1.8, y), name, CLEAN, 0.9)
        arrow(axis, (1.0, 2.65), (1.35, y))
        arrow(axis, (2.25, y), (4.65, y))
        box(axis, (5.1, y), "network f", CLEAN, 0.9)
        arrow(axis, (5.55, y), (6.3, 2.65 + 0.1 * (1 if y > 2.65 else -1)))
    box(axis, (6.85, 2.65), "clean\nloss", CLEAN, 1.1, 0.6)
    arrow(axis, (1.8, 1.88), (1.8, 1.02))
    box(axis, (1.8, 0.8), "VAE encoder\nz = E(x0)", PLAIN, 1.1, 0.5)
    box(axis, (3.05, 0.8), "z + δ", ATTACK, 0.7)
    box(axis, (4.15, 0.8), "VAE decoder\nD(z + δ)", PLAIN, 1.0, 0.5)
    note(axis, (3.1, 1.5), "residual R = x0 − D(z)", ha="left")
    arrow(axis, (1.8, 1.5), (3.05, 1.5))
    arrow(axis, (4.55, 1.5), (5.22, 1.5), (5.22, 1.05))
    for start, end in ((2.35, 2.7), (3.4, 3.65)):
        arrow(axis, (start, 0.8), (end, 0.8))
    arrow(axis, (4.65, 0.8), (4.85, 0.8))
    box(axis, (5.22, 0.8), "view x'\n= R + D", ATTACK, 0.72, 0.5)
    arrow(axis, (5.58, 0.8), (5.75, 0.8))
    box(axis, (6.02, 0.8), "f,\nBN 2", ATTACK, 0.5, 0.5)
    arrow(axis, (6.27, 0.8), (6.45, 0.8))
    box(axis, (6.97, 0.8), "adversarial\nloss", ATTACK, 1.0, 0.6)
    arrow(axis, (5.5, 1.88), (6.9, 1.1))
    arrow(axis, (6.97, 0.5), (6.97, 0.22), (3.05, 0.22), (3.05, 0.58), dashed=True)
    note(axis, (5.0, 0.34), "gradient: one step of length ε that raises this loss")
    note(axis, (6.55, 3.6), "total loss =\nclean + weight · adversarial")
    return figure


def dual_batchnorm() -> Figure:
    """Return the two branches of a BatchNorm, and what uses them."""
    figure, axis = canvas(7.6, 2.5)
    for y, images, branch, colour, use in (
        (1.85, "clean views\nx0, x1", "BatchNorm 1\n(the original)", CLEAN, "kept: evaluation, checkpoints, export"),
        (0.75, "adversarial\nviews x'", "BatchNorm 2\n(batch statistics)", ATTACK, "training only, then removed"),
    ):
        box(axis, (0.75, y), images, colour, 1.1, 0.6)
        arrow(axis, (1.3, y), (1.6, y))
        box(axis, (2.2, y), "convolution", PLAIN, 1.1)
        arrow(axis, (2.75, y), (3.05, y))
        box(axis, (3.75, y), branch, colour, 1.35, 0.6)
        arrow(axis, (4.43, y), (4.75, y))
        note(axis, (4.82, y), use, ha="left")
    axis.plot((2.2, 2.2), (0.98, 1.62), color=INK, linewidth=0.9, linestyle=":")
    note(axis, (2.28, 1.3), "same weights", ha="left")
    return figure


def house() -> Figure:
    """Return the parts of the project. An arrow points from a part to one that it imports."""
    figure, axis = canvas(7.0, 4.3)
    box(axis, (1.6, 3.85), "cli\nparses, calls, prints", CLEAN, 2.2, 0.55)
    box(axis, (1.6, 2.8), "bench\nrun · sweep · compare · ablate · report", CLEAN, 2.9, 0.65)
    box(axis, (5.3, 3.85), "plugins\nmethods · augmentations · backbones", ATTACK, 2.9, 0.55)
    box(axis, (5.3, 2.8), "plugin\nbase classes, options", PLAIN, 2.2, 0.65)
    box(axis, (3.45, 1.65), "losses\nclean + adversarial", PLAIN, 1.7, 0.6)
    box(axis, (1.2, 1.65), "evaluation\nkNN · linear · RankMe", PLAIN, 1.9, 0.6)
    box(axis, (5.7, 1.65), "views\nspace + ascent, or learned", PLAIN, 2.0, 0.6)
    box(axis, (3.45, 0.65), "batchnorm · isolation · vae · transforms · data", PLAIN, 6.3, 0.5)
    note(axis, (3.0, 3.35), "finds plugins by name only,\nthrough entry points", ha="left", fontsize=8)
    arrow(axis, (1.6, 3.57), (1.6, 3.13))
    arrow(axis, (5.3, 3.57), (5.3, 3.13))
    arrow(axis, (3.05, 2.8), (4.2, 2.8))
    arrow(axis, (1.2, 2.47), (1.2, 1.95))
    arrow(axis, (5.0, 2.47), (3.9, 1.95))
    arrow(axis, (5.6, 2.47), (5.6, 1.95))
    for x in (1.2, 3.45, 5.7):
        arrow(axis, (x, 1.35), (x, 0.9))
    note(axis, (3.5, 0.2), "grey: the library, usable in any training loop")
    return figure


def cost() -> Figure:
    """Return the cost of a training step with each form of view, relative to SimCLR alone."""
    (setting,) = json.loads(COSTS.read_text())["settings"]
    steps = {name: step["relative"] for name, step in setting["steps"].items()}
    names = sorted(steps, key=lambda name: (steps[name]["flops_per_image"], name), reverse=True)
    figure = Figure(figsize=(7, 0.34 * len(names) + 0.9), facecolor="white", layout="constrained")
    axis = figure.subplots()
    for shift, key, title, colour in (
        (0.19, "flops_per_image", "operations", "#1f5fa8"),
        (-0.19, "seconds", "time", "#e08a4f"),
    ):
        values = [steps[name][key] for name in names]
        axis.barh([index - shift for index in range(len(names))], values, 0.36, label=title, color=colour)
    for index, name in enumerate(names):
        longest = max(steps[name]["flops_per_image"], steps[name]["seconds"])
        axis.text(longest + 0.04, index, f"{steps[name]['flops_per_image']:.2f}", va="center", fontsize=8, color=INK)
    axis.axvline(1, color=INK, linewidth=0.8)
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    axis.set_xlabel(
        f"a step × that of SimCLR ({setting['backbone']}, {setting['image_size']} px); the number is of operations"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False)
    return figure


PICTURES = {"pipeline": pipeline, "dual-batchnorm": dual_batchnorm, "house": house, "cost": cost}
"""Function that draws each picture, by the name of its file."""


def main(out: Path = HERE / "pictures") -> None:
    """Draw all pictures into a folder."""
    out.mkdir(exist_ok=True)
    with mpl.rc_context(SETTINGS):
        for name, draw in PICTURES.items():
            draw().savefig(out / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
