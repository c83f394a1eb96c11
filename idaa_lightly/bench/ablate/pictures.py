"""Pictures and text of an ablation: table, forest plot and waterfall."""

from __future__ import annotations

import textwrap
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from matplotlib.figure import Figure

from idaa_lightly.bench.ablate.schema import Ablation
from idaa_lightly.bench.ablate.verdict import of_kind
from idaa_lightly.bench.compare.forest import INK, SETTINGS, SURE, UNSURE, Contrast, save_forest
from idaa_lightly.bench.compare.text import ALL_TITLES, markdown, mean_and_std, quantity
from idaa_lightly.bench.record import write_json
from idaa_lightly.files import atomic_write

PICTURES = {
    "contrasts": "The contrasts that were fixed beforehand, with simultaneous 95 % intervals",
    "waterfall": "What each step of the ladder adds to the mean; a dot per seed",
}
"""Pictures of an ablation, NAME.svg and NAME.png, with their captions."""


def write_ablation(result: Ablation, out: Path) -> list[Path]:
    """Write ablation.json, ablation.md and the pictures of `PICTURES`. Return the files."""
    write_json(out / "ablation.json", result)
    pictures = [f"![{caption}]({name}.svg)" for name, caption in PICTURES.items()]
    parts = [result["verdict"], *pictures, markdown(*cells(result)), *result["notes"]]
    if result["trials"]:
        parts += ["Trials on the validation images, * chosen:", markdown(*trial_cells(result))]
    with atomic_write(out / "ablation.md") as temporary:
        temporary.write_text(
            f"# {result['method']} × {result['aug']}\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8"
        )
    for suffix in ("svg", "png"):
        save_forest(forest_rows(result), out / f"contrasts.{suffix}")
        with mpl.rc_context(SETTINGS), atomic_write(out / f"waterfall.{suffix}") as temporary:
            metadata = {"Date": None, "Creator": None} if suffix == "svg" else None
            waterfall(result).savefig(temporary, dpi=150, metadata=metadata, facecolor="white")
    names = [f"{name}.{suffix}" for name in PICTURES for suffix in ("svg", "png")]
    return [out / name for name in ("ablation.json", "ablation.md", *names)]


def cells(result: Ablation, *, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of text of the table. Only the contrasts are judged; the table describes.

    Args:
        result: The ablation.
        brief: Leave out what does not fit a terminal: operations, further figures than `linear`, and options.
    """
    rows = result["rows"]
    names = [name for name in rows[0]["others"] if all(name in row["others"] for row in rows)]
    names = [name for name in names if name == "linear"] if brief else names
    unit = ", %" if "sampling_error" in result else ""
    (alone,) = of_kind(rows, "alone")
    base = mean(alone["values"])
    lines = []
    for row in rows:
        change = "" if row is alone else f"{mean(row['values']) - base:+.2f}"
        figures = [f"{row['others'][name]:.2f}" for name in names]
        cost = [str(row["epochs"]), f"{row['flops'] / alone['flops']:.2f}"]
        more = [] if brief else [quantity(row["flops"]), row["options"]]
        lines.append([row["name"], mean_and_std(row["values"]), change, *figures, *cost, *more])
    header = ["row", f"{ALL_TITLES[result['metric']]}{unit}", "Δ", *(ALL_TITLES[name] for name in names)]
    return [*header, "epochs", "FLOPs ×", *([] if brief else ["FLOPs", "options"])], lines


def trial_cells(result: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of text of the trials."""
    header = ["row", "options", ALL_TITLES[result["metric"]]]
    lines = []
    for trial in result["trials"]:
        options = " ".join(f"{key}={value}" for key, value in trial["options"].items())
        lines.append([trial["row"], options, f"{trial['value']:.2f}{' *' * trial['chosen']}"])
    return header, lines


def forest_rows(result: Ablation) -> list[Contrast]:
    """Return the rows of the forest plot."""
    seeds, name = len(result["seeds"]), result["aug"]
    return [
        Contrast(f"{name} − {item['name']}", {result["metric"]: (item["center"], item["low"], item["high"])}, seeds)
        for item in result["contrasts"]
    ]


def waterfall(result: Ablation) -> Figure:
    """Draw what each step of the ladder from the method alone to the candidate adds."""
    steps = [row for row in result["rows"] if row["adds"]]
    figure = Figure(figsize=(1.4 + 1.5 * len(steps), 3.6), layout="constrained")
    axis = figure.subplots()
    before = mean(steps[0]["values"])
    for place, row in enumerate(steps):
        center = mean(row["values"])
        change = center - before
        colour = UNSURE if place == 0 else SURE if change >= 0 else "#b0413e"
        if place:
            axis.bar(place, change, bottom=before, width=0.55, color=colour, alpha=0.85)
            axis.plot([place - 1.28, place + 0.28], [before, before], color=INK, linewidth=0.6)
        axis.plot([place - 0.28, place + 0.28], [center, center], color=INK, linewidth=1.4)
        seeds = len(row["values"])
        offsets = [place + 0.3 * ((number + 0.5) / seeds - 0.5) for number in range(seeds)]
        axis.plot(offsets, row["values"], ".", color=INK, markersize=4, alpha=0.6)
        text = f"{center:.2f}" if place == 0 else f"{change:+.2f}"
        axis.annotate(
            text, (place, max(center, before, *row["values"])), (0, 5), textcoords="offset points", ha="center"
        )
        before = center
    names = [row["adds"] if place == 0 else f"+ {row['adds']}" for place, row in enumerate(steps)]
    axis.set_xticks(range(len(steps)), [textwrap.fill(name, 16) for name in names])
    unit = ", %" if "sampling_error" in result else ""
    axis.set(ylabel=f"{ALL_TITLES[result['metric']]}{unit}")
    axis.margins(y=0.15)
    axis.grid(axis="y", linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return figure
