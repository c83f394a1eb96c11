"""The pages that are rendered from the records of recipes.

README.md of the folder, and that of the folder above it, get each table between `<!-- table NAME -->` and
`<!-- end -->`; the file of each recipe gets comments on what is to be expected of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

from idaa_lightly.bench.compare.groups import BASELINE, Group, compare, difference, read_groups, share_to
from idaa_lightly.bench.compare.text import cells, difference_in_words, markdown, quantity
from idaa_lightly.bench.published.recipes import Recipe, Table, read_table, table_names
from idaa_lightly.bench.record import read_record
from idaa_lightly.files import atomic_write

ACCURACIES = {"knn": "kNN, %", "knn_projection": "kNN on the projection, %", "linear": "linear, %"}
SECTION = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(table: Table) -> str:
    """The table in Markdown: our figures beside the published ones, or differences, and what was not run."""
    there = [table.records(recipe) for recipe in table.recipes if any(table.records(recipe).rglob("record.json"))]
    groups: dict[str, list[tuple[Group, dict[str, str]]]] = {}  # with their cells, by recipe
    shared = "nothing was run yet"
    if there:
        augs = [recipe.config.aug for recipe in table.recipes if table.records(recipe) in there]
        against = table.against if table.against in augs else BASELINE
        comparison = compare(there, by_commit=False, against=against)
        header, rows = cells(comparison)
        notes = [note.removesuffix(".") for note in comparison.notes]
        if table.pairs:
            notes = [note.removesuffix(": see its column") for note in notes]
        shared = "; ".join([f"all: {comparison.shared}", *notes])
        for group, row in zip(read_groups(there, by_commit=False)[0], rows, strict=True):
            name = next(iter(group.folders.values())).parent.name
            groups.setdefault(name, []).append((group, dict(zip(header, row, strict=True))))
    result = list(_differences(table, groups) if table.pairs else _rows(table, groups))
    titles = dict.fromkeys(title for row in result for title in row)
    columns = [title for title in titles if not table.columns or title in table.columns]
    starred = any(title.startswith("paper*") for title in columns)
    missing = len(list(table.missing()))
    studied = table.recipes if table.study else ()
    parts = [
        f"**{table.title}**",
        markdown(columns, [[row.get(title, "") for title in columns] for row in result]),
        *(_study(table, recipe) for recipe in studied if (table.studied(recipe) / "identity.json").exists()),
        f"{shared[0].upper()}{shared[1:]}.",
        table.note,
        f"\\* {table.published}." if starred else "",
        f"`idaa-bench table {table.name}`" + (f" ({missing} runs are missing)" if missing else ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(table: Table, groups: dict[str, list[tuple[Group, dict[str, str]]]]) -> Iterator[dict[str, str]]:
    """What the runs began with, and a row for each recipe."""
    titles = next((list(row) for found in groups.values() for _, row in found), ["method", "aug", "seeds"])
    blank = dict.fromkeys(titles, "")
    for row in () if table.reach else _starts(table):
        yield blank | row
    for recipe in table.recipes:
        options = [f"{key}={value}" for items in recipe.config.set.values() for key, value in items.items()]
        waiting = {"method": recipe.config.method, "aug": " ".join([recipe.config.aug, *options]), "seeds": "not run"}
        paper = {
            f"paper*: {ACCURACIES[name]}": f"{value:.2f}" for name, value in table.paper.get(recipe.name, {}).items()
        }
        found = [row | _reached(group, table.reach) for group, row in groups.get(recipe.name, [])]
        for row in found or [waiting]:
            yield blank | row | paper


def _differences(table: Table, groups: dict[str, list[tuple[Group, dict[str, str]]]]) -> Iterator[dict[str, str]]:
    """A row for each pair of recipes, of the seeds that both have."""
    for names in table.pairs:
        row = {"difference": " − ".join(names), "seeds": "not run"}
        if all(len(groups.get(name, ())) == 1 for name in names):  # not of two data sets
            (one, _), (other, _) = (groups[name][0] for name in names)
            both = len(one.records.keys() & other.records.keys())
            row["seeds"] = str(both)
            for name, title in ACCURACIES.items():
                numbers = difference(name, one, other) | {"seeds": both}
                row[f"Δ {title.removesuffix(', %')} [95 %]"] = difference_in_words(numbers, name)
        yield row


def _starts(table: Table) -> Iterator[dict[str, str]]:
    """Rows of what a table's runs had before their training: bare pixels, and the untrained network."""
    paths = [path for recipe in table.recipes for path in sorted(table.records(recipe).glob("*/record.json"))]
    records = [read_record(path.parent) for path in paths]
    by_seed = {record["config"]["seed"]: record["initial"] for record in records}
    if len({(record["config"]["backbone"], record["config"]["image_size"]) for record in records}) != 1:
        return
    pixels = [initial["knn_pixels"] for initial in by_seed.values() if "knn_pixels" in initial][:1]
    untrained = {name: [initial[name] for initial in by_seed.values()] for name in ACCURACIES}
    for name, found in ("raw pixels", {"knn": pixels}), ("untrained network", untrained):
        if found["knn"]:
            accuracies = {ACCURACIES[key]: _percent(values) for key, values in found.items()}
            yield {"method": name, "seeds": str(len(found["knn"])), **accuracies}


def _reached(group: Group, accuracies: tuple[float, ...]) -> dict[str, str]:
    """Operations and seconds of training until kNN reached each accuracy, as Table 11 of the paper asks."""
    result = {}
    for accuracy in accuracies:
        shares = [share_to(record, accuracy / 100) for record in group.records.values()]
        found = [share for share in shares if share is not None]
        text = "not reached"
        if found:
            text = f"{quantity(mean(found) * (group.flops or 0))}, {mean(found) * group.seconds:.0f} s"
        few = f" ({len(found)} of {len(shares)} seeds)" if 0 < len(found) < len(shares) else ""
        result[f"to {accuracy} % kNN"] = text + few
    return result


def _study(table: Table, recipe: Recipe) -> str:
    """The figures of `idaa-bench identity`, and its picture."""
    folder = table.studied(recipe)
    header = [
        "views",
        "lost, %",
        "distance to the own view / to the nearest other, median",
        "5 to 95 %",
        "change of the image, L2",
    ]
    rows = []
    for name, part in json.loads((folder / "identity.json").read_text())["augmentations"].items():
        low, _, median, _, high = part["hardness"]
        size = f"{part['l2']:.2f}" if "l2" in part else ""
        rows.append([name, f"{100 * part['lost']:.2f}", f"{median:.2f}", f"{low:.2f} to {high:.2f}", size])
    picture = (folder / "identity.png").relative_to(table.folder)
    return markdown(header, rows) + f"\n\n![Distances to the own view and to the nearest other]({picture})"


def pages(folder: Path) -> dict[Path, str]:
    """What both README.md and the heads of the recipes are to hold, as the records give it, by file."""
    tables = {name: read_table(folder, name) for name in table_names(folder)}
    texts = {}
    for page in (folder / "README.md", folder.resolve().parent / "README.md"):
        if page.exists():
            texts[page] = SECTION.sub(
                lambda found: f"{found[1]}\n{render(tables[found[2]])}\n{found[3]}", page.read_text()
            )
    for recipe in {recipe.name: recipe for table in tables.values() for recipe in table.recipes}.values():
        path = folder / "recipes" / f"{recipe.name}.toml"
        body = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        shown = [table for table in tables.values() if recipe in table.recipes]
        texts[path] = "\n".join([*_head(shown, recipe), *body]) + "\n"
    return texts


def _head(tables: list[Table], recipe: Recipe) -> Iterator[str]:
    """Comments of a recipe that these tables show: its command, what is expected, and what the paper says."""
    records = [read_record(path.parent) for path in sorted(tables[0].records(recipe).glob("*/record.json"))]
    count = max(len(records), *(table.seeds for table in tables))
    seeds = " ".join(f"--seed {seed}" for seed in range(count))
    yield f"# idaa-bench run --config {tables[0].folder.name}/recipes/{recipe.name}.toml {seeds}"
    if records:
        scores = [f"{name} {_percent([record['last'][name] for record in records])}" for name in ACCURACIES]
        minutes = mean(record["time"]["train_s"] for record in records) / 60
        device = records[0]["device"]
        yield f"# expected: {', '.join(scores)} ({len(records)} seeds), {minutes:.0f} min of training, {device['name']}"
    else:
        yield "# not run yet"
    for table in tables:
        if paper := table.paper.get(recipe.name):
            yield f"# paper: {', '.join(f'{name} {value}' for name, value in paper.items())} ({table.published})"
            break


def _percent(values: list[float]) -> str:
    """Mean ± standard deviation of shares."""
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread}" if values else ""


def write_pages(folder: Path) -> list[Path]:
    """Renders the pages and the heads of the recipes; returns the files that changed."""
    changed = {path: text for path, text in pages(folder).items() if path.read_text() != text}
    for path, text in changed.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    return list(changed)
