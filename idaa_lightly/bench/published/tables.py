"""Published tables in Markdown, rendered from the records of their recipes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

from idaa_lightly.bench.compare.comparison import compare
from idaa_lightly.bench.compare.groups import BASELINE, MEASURES, Group, near, read_groups
from idaa_lightly.bench.compare.text import (
    TITLES,
    columns,
    difference_column,
    difference_in_words,
    markdown,
    mean_and_std,
    quantity,
)
from idaa_lightly.bench.evaluate.schema import Study
from idaa_lightly.bench.published.differences import differences_of
from idaa_lightly.bench.published.recipes import Recipe, Table
from idaa_lightly.bench.record import read_record, share_to, training_flops
from idaa_lightly.bench.schema import read_json

Line = dict[str, str]
"""Texts of a row of a table, by the keys of its columns."""
NAMED = 12
"""Recipes that are named if they were not run, at most."""
ON_REQUEST = ("commit", "device", "train_s", "time_relative", "images_per_s")
"""Keys of columns that a table has only if it asks for them."""


@dataclass(frozen=True)
class _Found:
    """The comparison of a table's records.

    Attributes:
        groups: Groups with their rows, by recipe.
        titles: Titles of the columns, by key.
        notes: Facts that all groups share, and cautions, a sentence each.
    """

    groups: dict[str, list[tuple[Group, Line]]]
    titles: dict[str, str]
    notes: list[str]


def render(table: Table) -> str:
    """Return the table in Markdown: our figures beside the published ones, or differences, and what was not run."""
    found = _compared(table)
    lines = list(_differences(table, found) if table.pairs else _lines(table, found))
    keys = dict.fromkeys(key for line in lines for key in line)
    shown = [key for key in keys if (key in table.columns if table.columns else key not in ON_REQUEST)]
    titles = found.titles | _own_titles(table)
    missing = len(list(table.missing()))
    studied = table.recipes if table.study else ()
    shared = "; ".join(found.notes) or "nothing was run yet"
    parts = [
        f"**{table.title}**",
        markdown([titles.get(key, key) for key in shown], [[line.get(key, "") for key in shown] for line in lines])
        if lines
        else "",
        *(_study(table, recipe) for recipe in studied if (table.studied(recipe) / "identity.json").exists()),
        f"{shared[0].upper()}{shared[1:]}.",
        _not_run(table, found),
        table.note,
        f"\\* {table.published}." if any(key.startswith("paper_") for key in shown) else "",
        f"`idaa-bench table {table.name}`" + (f" ({missing} runs are missing)" if missing else ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _own_titles(table: Table) -> dict[str, str]:
    """Return titles of columns that a comparison does not have."""
    titles = {f"paper_{measure}": f"paper*: {title}, %" for measure, title in TITLES.items()}
    titles |= {f"{measure}_difference": difference_column(measure).title for measure in TITLES if table.pairs}
    return titles | {f"to_{accuracy}": f"to {accuracy} % kNN" for accuracy in table.reach}


def _compared(table: Table) -> _Found:
    there = [table.records(recipe) for recipe in table.recipes if any(table.records(recipe).rglob("record.json"))]
    if not there:
        return _Found({}, {}, [])
    augs = [recipe.config.aug for recipe in table.recipes if table.records(recipe) in there]
    comparison = compare(there, by_commit=False, against=table.against if table.against in augs else BASELINE)
    records = f"{near((table.folder / 'records').resolve())}/"  # Left out, so that pages are the same from everywhere.
    notes = [note.removesuffix(".").replace(records, "") for note in comparison.notes]
    shown = columns(comparison, table.columns)
    groups: dict[str, list[tuple[Group, Line]]] = {}
    for group, row in zip(read_groups(there, by_commit=False)[0], comparison.rows, strict=True):
        name = next(iter(group.folders.values())).parent.name
        groups.setdefault(name, []).append((group, {column.key: column.text(row) for column in shown}))
    titles = {column.key: column.title for column in shown}
    return _Found(groups, titles, [f"all: {comparison.shared}", *notes])


def _lines(table: Table, found: _Found) -> Iterator[Line]:
    """Yield what the runs began with, and a line for each recipe that was run or published."""
    blank = dict.fromkeys(found.titles or ("method", "aug", "seeds"), "")
    for line in () if table.reach else _starts(table):
        yield blank | line
    for recipe in table.recipes:
        options = [f"{key}={value}" for items in recipe.config.set.values() for key, value in items.items()]
        waiting = {"method": recipe.config.method, "aug": " ".join([recipe.config.aug, *options]), "seeds": "not run"}
        paper = {f"paper_{measure}": f"{value:.2f}" for measure, value in table.paper.get(recipe.name, {}).items()}
        lines = [line | _reached(group, table.reach) for group, line in found.groups.get(recipe.name, [])]
        for line in lines or [waiting] * bool(paper):
            yield blank | line | paper


def _not_run(table: Table, found: _Found) -> str:
    """Return a sentence with the recipes that have no line."""
    lined = found.groups.keys() | table.paper.keys()
    names = [] if table.pairs else [recipe.name for recipe in table.recipes if recipe.name not in lined]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"Not run: {', '.join(f'`{name}`' for name in names[:NAMED])}{more}." if names else ""


def _differences(table: Table, found: _Found) -> Iterator[Line]:
    """Yield a line for each pair of recipes, of the seeds that both have, or that all have if the table is joint."""
    groups = {name: part[0][0] for name, part in found.groups.items() if len(part) == 1}  # not of two data sets
    found_by_pair = differences_of(groups, table.pairs, joint=table.joint)
    for pair in table.pairs:
        line = {"difference": " − ".join(pair), "seeds": "not run"}
        if pair in found_by_pair:
            row = found_by_pair[pair] | {"seeds": found_by_pair[pair]["knn_pairs"]}
            line["seeds"] = str(row["seeds"])
            line |= {f"{measure}_difference": difference_in_words(row, measure) for measure in MEASURES}
        yield line


def _starts(table: Table) -> Iterator[Line]:
    """Yield a line with the accuracy of raw pixels, and one with those of the untrained network."""
    paths = [path for recipe in table.recipes for path in sorted(table.records(recipe).glob("*/record.json"))]
    records = [read_record(path.parent) for path in paths]
    by_seed = {record["config"]["seed"]: record["initial"] for record in records}
    configs = [record["config"] for record in records]
    if len({(each["backbone"], each["image_size"], str(each["set"].get("backbone"))) for each in configs}) != 1:
        return
    pixels = [initial["knn_pixels"] for initial in by_seed.values() if "knn_pixels" in initial][:1]
    untrained = {
        measure: [initial[measure] for initial in by_seed.values() if measure in initial] for measure in MEASURES
    }
    for name, found in ("raw pixels", {"knn": pixels}), ("untrained network", untrained):
        if found["knn"]:
            accuracies = {measure: _percent(values) for measure, values in found.items()}
            yield {"method": name, "seeds": str(len(found["knn"])), **accuracies}


def _reached(group: Group, accuracies: tuple[float, ...]) -> Line:
    """Return operations and seconds of training until kNN reached each accuracy, as in Table 11 of the paper."""
    result = {}
    for accuracy in accuracies:
        shares = [(share_to(record, accuracy / 100), record) for record in group.records.values()]
        found = [(share, record) for share, record in shares if share is not None]
        text = "not reached"
        if found:
            flops = mean(share * training_flops(record) for share, record in found)
            seconds = mean(share * record["time"]["train_s"] for share, record in found)
            text = f"{quantity(flops)}, {seconds:.0f} s"
        few = f" ({len(found)} of {len(shares)} seeds)" if 0 < len(found) < len(shares) else ""
        result[f"to_{accuracy}"] = text + few
    return result


def _study(table: Table, recipe: Recipe) -> str:
    """Return the figures of `idaa-bench identity`, and its picture."""
    folder = table.studied(recipe)
    header = [
        "views",
        "lost, %",
        "distance to the own view / to the nearest other, median",
        "5 to 95 %",
        "change of the image, L2",
    ]
    rows = []
    for name, part in read_json(folder / "identity.json", Study, "an identity study")["augmentations"].items():
        low, _, median, _, high = part["hardness"]
        size = f"{part['l2']:.2f}" if "l2" in part else ""
        rows.append([name, f"{100 * part['lost']:.2f}", f"{median:.2f}", f"{low:.2f} to {high:.2f}", size])
    picture = (folder / "identity.png").relative_to(table.folder)
    return markdown(header, rows) + f"\n\n![Distances to the own view and to the nearest other]({picture})"


def _percent(values: list[float]) -> str:
    """Return mean ± standard deviation in percent of values in [0, 1]."""
    return mean_and_std([100 * value for value in values])
