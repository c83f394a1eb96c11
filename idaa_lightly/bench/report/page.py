"""HTML report of finished runs: one page with tables, plots, pictures and configurations that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from idaa_lightly.bench.ablate.pictures import PICTURES
from idaa_lightly.bench.ablate.schema import SCHEMA as ABLATION
from idaa_lightly.bench.ablate.schema import Ablation
from idaa_lightly.bench.compare.comparison import Comparison, compare
from idaa_lightly.bench.compare.forest import Contrast, contrasts_of
from idaa_lightly.bench.compare.groups import near, read_groups
from idaa_lightly.bench.compare.text import columns
from idaa_lightly.bench.evaluate.schema import Study, Views
from idaa_lightly.bench.report.curves import (
    Block,
    Figure,
    Shown,
    accuracy_curve,
    blocks,
    flops_curves,
    logged_curves,
    time_curves,
    unlabelled_curves,
)
from idaa_lightly.bench.report.sensitivity import sensitivity_figures
from idaa_lightly.bench.report.svg import differences
from idaa_lightly.bench.schema import Record, read_json
from idaa_lightly.errors import FileFormatError
from idaa_lightly.files import atomic_write

TABLE = (
    "knn", "knn_difference", "linear", "linear_difference", "rankme", "uniformity", "alignment",
    "embedding_spread", "seeds", "epochs", "flops_relative", "knn_at_budget",
)  # fmt: skip
"""Keys of the columns of the page's table, in its order. Data, commits, devices and times are in the list of runs."""


def write_report(targets: Sequence[Path], out: Path) -> list[str]:
    """Write the report on all runs below these directories.

    Args:
        targets: Run directories, or directories of runs.
        out: The HTML file.

    Returns:
        Sentences that name what is missing. The page lists them, too.

    Raises:
        FileFormatError: There is no run, or a record cannot be read.
        UsageError: A run appears twice.
    """
    comparison = compare(targets)
    parts = blocks(read_groups(targets)[0])
    groups = sorted((item for block in parts for item in block.groups), key=lambda item: item.index)
    missing: list[str] = []
    content = {
        "groups": groups,
        "table": table(comparison),
        "comparison": comparison,
        "verdict": verdict(contrasts_of(comparison, [item.label for item in groups])),
        "ablations": _ablations(targets, missing),
        "differences": _differences(comparison, parts),
        "blocks": [_curves(block, groups, missing) for block in parts],
        "sensitivity": sensitivity_figures(groups),
        "identity": _identity(groups, missing),
        "views": _views(groups, missing),
        "runs": _runs(groups),
    }
    with atomic_write(out) as temporary:
        temporary.write_text(_render(content | {"missing": missing}), encoding="utf-8")
    return missing


def _render(content: Mapping[str, Any]) -> str:
    """Return the page. Its policy lets the browser run no other script and fetch nothing."""
    environment = Environment(
        loader=PackageLoader("idaa_lightly.bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["near"] = near
    style, script = (_source(environment, name) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    now = datetime.now(timezone.utc)
    return environment.get_template("report.html.jinja").render(
        content, style=style, script=script, digest=digest, now=now, version=version("idaa-lightly")
    )


def _source(environment: Environment, name: str) -> Markup:
    """Return the text of one of our files, unescaped."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _curves(block: Block, everyone: list[Shown], missing: list[str]) -> dict[str, Any]:
    """Return the figures of a block by section."""
    losses, logged = logged_curves(block.groups, missing)
    learning, costs = [*losses, *unlabelled_curves(block.groups)], []
    if part := [item for item in block.groups if item.group.labelled]:
        learning = [accuracy_curve(part), *learning]
        costs = [*time_curves(part, everyone), *flops_curves(part, everyone, missing)]
    return {"title": block.title, "groups": block.groups, "learning": learning, "costs": costs, "logged": logged}


def table(comparison: Comparison) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Return columns {name, numeric} and rows of cells {text, key, interval} of the comparison's figures.

    A key is what the cell is sorted by, None if it is empty. An interval is that of the mean difference from the
    baseline: low, center and high, in % of the width of a picture with 0 in its middle.
    """
    found = {column.key: column for column in columns(comparison)}
    shown = [found[key] for key in TABLE if key in found]
    rows: list[list[dict[str, Any]]] = [[] for _ in comparison.rows]
    for column in shown:
        limits = [_interval(row, column.number) if column.measure else [] for row in comparison.rows]
        widest = max((abs(value) for limit in limits for value in limit), default=0) or 1
        for cells, row, limit in zip(rows, comparison.rows, limits, strict=True):
            key = row[column.number] if column.number else row.get(column.key)
            scaled = [round(50 + 48 * value / widest, 2) for value in limit]
            cells.append({"text": column.text(row), "key": None if key == "" else key, "interval": scaled})
    return [{"name": column.title, "numeric": bool(column.number)} for column in shown], rows


def verdict(contrasts: Sequence[Contrast]) -> str:
    """Return what the intervals of the differences in kNN accuracy say, in words; empty without differences."""
    points = {item.label: (*item.points["knn"], item.seeds) for item in contrasts if "knn" in item.points}
    sure = {label: part for label, part in points.items() if part[1] is not None}
    gains = [label for label, (_, low, *_) in sure.items() if low is not None and low > 0]
    losses = [label for label, (_, _, high, _) in sure.items() if high is not None and high < 0]
    if not points:
        return ""
    counts = {
        "above the baseline": len(gains),
        "below the baseline": len(losses),
        "not told apart from the baseline": len(sure) - len(gains) - len(losses),
        "with a single seed, which is too few for a verdict": len(points) - len(sure),
    }
    text = f"Groups by kNN: {', '.join(f'{count} {what}' for what, count in counts.items() if count)}."
    if gains:
        best = max(gains, key=lambda label: sure[label][0])
        center, low, high, seeds = sure[best]
        text += (
            f" The largest gain is that of {best}: {center:+.2f} points [{low:+.2f}, {high:+.2f}] over {seeds} seeds."
        )
    return text


def _differences(comparison: Comparison, parts: Sequence[Block]) -> list[tuple[str, Figure]]:
    """Return titles and forest plots of the differences from the baseline, one for each block that has any."""
    labels = {item.index: item for block in parts for item in block.groups}
    every = contrasts_of(comparison, [labels[index].label for index in sorted(labels)])
    made = []
    for number, block in enumerate(parts):
        styles = {item.index: item.style for item in block.groups}
        contrasts = [item for item in every if item.group in styles]
        if contrasts:
            members = tuple(item.group for item in contrasts if item.group is not None)
            plot = differences(contrasts, [styles[index] for index in members], f"differences{number}")
            caption = f"Differences from {comparison.against}, with 95 % intervals"
            made.append((block.title, Figure(plot, caption, members)))
    return made


def _ablations(targets: Sequence[Path], missing: list[str]) -> list[tuple[str, str, list[Figure]]]:
    """Return the title, the verdict and the pictures of each ablation below these directories."""
    made = []
    for path in sorted({path.resolve() for target in targets for path in target.rglob("ablation.json")}):
        try:
            found = read_json(near(path), Ablation, "the result of an ablation", (ABLATION,))
        except FileFormatError as error:
            missing.append(f"{error}: it is left out.")
            continue
        pictures = [
            figure
            for name, caption in PICTURES.items()
            for figure in _picture(path.with_name(f"{name}.png"), caption, None, missing)
        ]
        made.append((f"{found['method']} × {found['aug']}", found["verdict"], pictures))
    return made


def _interval(row: Mapping[str, Any], name: str) -> list[float]:
    center, low, high = (row[part] for part in (name, f"{name}_low", f"{name}_high"))
    return [] if center is None else [center] if low is None else [low, center, high]


def _identity(groups: list[Shown], missing: list[str]) -> tuple[list[dict[str, Any]], list[Figure]]:
    """Return table rows and pictures from each identity.json in a run directory or right below it."""
    rows, figures = [], []
    for item in groups:
        for seed, folder in item.group.folders.items():
            for path in sorted([*folder.glob("identity.json"), *folder.glob("*/identity.json")]):
                try:
                    study = read_json(near(path), Study, "an identity study")
                except FileFormatError as error:
                    missing.append(f"{error}: it is left out.")
                    continue
                found = [_identity_row(views, part) for views, part in study["augmentations"].items()]
                rows += [row | {"item": item, "seed": seed, "samples": study.get("samples")} for row in found]
                for name, what in (
                    ("identity", "Distance of each sample to its own view, and to the nearest other"),
                    ("density", "Ratio of both distances"),
                    ("panels", "Views, and what each adds to x"),
                ):
                    caption = f"{what}: {item.label}, seed {seed}"
                    figures += _picture(path.with_name(f"{name}.png"), caption, item, missing)
    if not rows:
        missing.append("No run has an identity study: `idaa-bench identity RUN` makes one.")
    return rows, figures


def _identity_row(views: str, part: Views) -> dict[str, Any]:
    """Return the figures of one augmentation, in percent and pixels."""
    low, _, median, _, high = part["hardness"]
    sizes = [part.get(norm) for norm in ("l2", "linf", "own_l2", "own_linf")]
    return {
        "views": views,
        "lost": 100 * part["lost"],
        "low": low,
        "median": median,
        "high": high,
        "sizes": sizes,
    }


def _views(groups: list[Shown], missing: list[str]) -> list[Figure]:
    """Return the view panels of the first run of each group that has them."""
    figures = []
    for item in groups:
        found = [(seed, folder / "views.png") for seed, folder in sorted(item.group.folders.items())]
        seed, path = next(((seed, path) for seed, path in found if path.exists()), found[0])
        figures += _picture(path, f"{item.label}, seed {seed}", item, missing)
    return figures


def _picture(path: Path, caption: str, item: Shown | None, missing: list[str]) -> list[Figure]:
    """Return a PNG to embed in the page; nothing if there is none."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            width, height = image.size
        data = base64.b64encode(path.read_bytes()).decode()
    except (OSError, Image.DecompressionBombError) as error:
        problems = {FileNotFoundError: "does not exist", Image.DecompressionBombError: "is too large"}
        problem = problems.get(type(error), "is no PNG")
        missing.append(f"{near(path)} {problem}: its picture is left out.")
        return []
    content = Markup('<img src="data:image/png;base64,{}" width="{}" height="{}" alt="{}">')
    return [Figure(content.format(data, width, height, caption), caption, (item.index,) if item else ())]


def _runs(groups: list[Shown]) -> dict[str, Any]:
    """Return what all runs share, and for each group its runs and what differs from the others."""
    facts = [{seed: _facts(record) for seed, record in item.group.records.items()} for item in groups]
    names = list(next(iter(facts[0].values())))
    values = {name: {fact[name] for part in facts for fact in part.values()} for name in names}
    shared = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
    blocks = []
    for item, part in zip(groups, facts, strict=True):
        own: dict[str, str] = {}
        for name in names:
            if name not in shared:
                own |= _by_seed(name, {seed: fact[name] for seed, fact in part.items()})
        configs = {seed: _configuration(record) for seed, record in item.group.records.items()}
        blocks.append({"item": item, "facts": own, "configs": _by_seed("config.toml", configs)})
    return {"shared": shared, "blocks": blocks}


def _by_seed(name: str, values: Mapping[int, str]) -> dict[str, str]:
    """Return one entry if all seeds have the same value, else one per seed."""
    if len(set(values.values())) == 1:
        return {name: next(iter(values.values()))}
    return {f"{name}, seed {seed}": value for seed, value in values.items()}


def _configuration(record: Record) -> str:
    return tomli_w.dumps({name: value for name, value in record["config"].items() if name != "seed"})


def _facts(record: Record) -> dict[str, str]:
    """Return how a run was made, except for its configuration."""
    data: dict[str, Any] = dict(record["data"])
    notes = data.pop("notes", [])
    return {
        "commit": record["git_commit"] or "none: installed from a wheel",
        "device": _listed(record["device"]),
        "data": _listed(data),
        "notes on the data": " ".join(notes) or "none",
        "evaluation": _listed(record["evaluation"]),
        "fitted before the training": _listed(record["fitted"]) or "nothing",
        "versions": _listed(record["versions"]),
    }


def _listed(values: Mapping[str, Any]) -> str:
    """Return names and values on one line."""
    texts = {
        name: json.dumps(value) if isinstance(value, list | dict) else str(value) for name, value in values.items()
    }
    return "; ".join(f"{name}: {text}" for name, text in texts.items())
