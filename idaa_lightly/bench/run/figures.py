"""Figures of runs: learning curves, views and a heat map of kNN accuracies."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from idaa_lightly.files import atomic_write

AMPLIFIED = 4
"""Factor by which x' − x is amplified before it is drawn around grey."""


def save_curves(folder: Path) -> None:
    """Draw RUN/curves.png from RUN/metrics.csv: losses by step; by epoch kNN accuracy, or RankMe without labels.

    Args:
        folder: The run directory.
    """
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in sorted(
        {name for row in rows for name in row if name.startswith("loss/") and not name.endswith("_epoch")}
    ):
        points = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
        left.plot(*zip(*points, strict=True), label=name.removeprefix("loss/"))
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    labelled = any(row.get("knn_validation") for row in rows)
    name, scale, title = (
        ("knn_validation", 100, "kNN top-1 on validation, %") if labelled else ("rankme", 1, "RankMe, without labels")
    )
    points = [(float(row["epochs_done"]), scale * float(row[name])) for row in rows if row.get(name)]
    right.plot(*zip(*points, strict=True), marker="o")
    right.set(xlabel="epoch", ylabel=title)
    save_figure(figure, folder / "curves.png")


def save_views(path: Path, rows: dict[str, Tensor], normalize: dict[str, list[float]], columns: int = 8) -> None:
    """Draw rows of normalised images.

    A row whose title contains "−" holds differences. It is amplified by `AMPLIFIED` and drawn around grey.

    Args:
        path: PNG to write.
        rows: Images (N, 3, H, W) by title.
        normalize: `mean` and `std` per channel that the images were normalised with.
        columns: Images to draw per row.
    """
    mean, std = (torch.tensor(normalize[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    figure = Figure(figsize=(columns * 1.1 + 1.2, len(rows) * 1.1), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (title, row) in zip(axes, rows.items(), strict=True):
        images = row[:columns].detach().cpu().float()
        difference = "−" in title
        shown = 0.5 + AMPLIFIED * images * std if difference else images * std + mean
        label = f"{AMPLIFIED}·({title})" if difference else title
        for axis, image in zip(line, shown.clamp(0, 1), strict=False):
            axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    save_figure(figure, path)


def save_knn(path: Path, accuracies: list[dict[str, Any]], title: str) -> None:
    """Draw top-1 accuracies in percent by k and temperature, as an annotated heat map.

    Args:
        path: PNG to write.
        accuracies: Dictionaries with `k`, `temperature` and `top1`, as in knn.json, sorted by k, then by temperature.
        title: Title of the figure.
    """
    ks, ts = (sorted({item[name] for item in accuracies}) for name in ("k", "temperature"))
    cells = torch.tensor([100 * item["top1"] for item in accuracies]).view(len(ks), len(ts)).T
    figure = Figure(figsize=(2.6 + 0.7 * len(ks), 1.6 + 0.5 * len(ts)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(cells.numpy(), aspect="auto", cmap="viridis")
    middle = (cells.min() + cells.max()) / 2
    for (row, column), value in np.ndenumerate(cells.numpy()):
        colour = "black" if value > middle else "white"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    axis.set(xlabel="k", ylabel="temperature", xticks=range(len(ks)), yticks=range(len(ts)))
    axis.set_xticklabels(ks)
    axis.set_yticklabels(ts)
    axis.set_title(title, fontsize="medium")
    figure.colorbar(image, label="kNN top-1, %")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG, atomically."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
