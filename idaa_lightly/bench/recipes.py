"""Tables made of recipes: which runs are missing, and the page that is rendered from the records of the others.

A folder such as benchmarks/ holds

    recipes/NAME.toml                   one configuration of `idaa-bench run --config`, without its seed
    tables.toml                         [tables.NAME] with title, note, seeds and recipes; published accuracies in
                                        percent, knn and linear, in [paper.METHOD.AUG], or [tables.NAME.paper.RECIPE]
    records/RECIPE/seed-N/record.json   what a finished run left; its weights stay in the run folder
    README.md                           the page, with a table between `<!-- table NAME -->` and `<!-- end -->`
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from idaa_lightly.bench.compare import compare, read_groups
from idaa_lightly.bench.config import RunConfig, load_toml, read_toml
from idaa_lightly.bench.prepare import resolve
from idaa_lightly.bench.results import read_record
from idaa_lightly.bench.run import run
from idaa_lightly.bench.tables import cells, markdown
from idaa_lightly.errors import BusyError, DataError, FileFormatError, NonFiniteError, UsageError, suggestion
from idaa_lightly.files import atomic_write

PAPER = "ResNet-18, CIFAR-10, 300 epochs; best epoch on the test images; kNN on the projection"
COLUMNS = {"knn": "kNN, %", "linear": "linear, %"}
SECTION = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Recipe:
    """A configuration, by the name of its file."""

    name: str
    config: RunConfig

    def run_of(self, seed: int) -> RunConfig:
        """The run of one seed."""
        return replace(self.config, seed=seed)


@dataclass(frozen=True)
class Table:
    """Rows of a published table, or of one of ours.

    Attributes:
        name: as in `idaa-bench table NAME`.
        title: says the question and the scale.
        note: what must be known to read it.
        seeds: each recipe is run for seeds 0 to seeds − 1.
        recipes: in the order of the rows.
        paper: published figures in percent, by recipe: knn and linear.
        folder: that holds recipes and records.
    """

    name: str
    title: str
    note: str
    seeds: int
    recipes: tuple[Recipe, ...]
    paper: dict[str, dict[str, float]]
    folder: Path

    def records(self, recipe: Recipe) -> Path:
        """Folder of a recipe's records."""
        return self.folder / "records" / recipe.name

    def missing(self) -> Iterator[tuple[Recipe, int]]:
        """Units without a record, all recipes of a seed before the next seed.

        Raises:
            FileFormatError: a record is of another configuration than its recipe.
        """
        for seed in range(self.seeds):
            for recipe in self.recipes:
                folder = self.records(recipe) / f"seed-{seed}"
                if not (folder / "record.json").exists():
                    yield recipe, seed
                else:
                    _require_same(recipe.run_of(seed), folder)


def read_table(folder: Path, name: str) -> Table:
    """One of the tables of a folder.

    Raises:
        FileFormatError: the folder has no tables.toml, or it or a recipe cannot be read.
        UsageError: no such table.
    """
    tables, paper = _read_tables(folder)
    if name not in tables:
        raise UsageError(f"no table {name!r} in {folder}; known: {', '.join(tables)}.{suggestion(name, tables)}")
    entry = tables[name]
    recipes = tuple(
        Recipe(recipe, RunConfig(**read_toml(folder / "recipes" / f"{recipe}.toml"))) for recipe in entry["recipes"]
    )
    usual = {recipe.name: paper.get(recipe.config.method, {}).get(recipe.config.aug, {}) for recipe in recipes}
    figures = entry.get("paper", usual)
    return Table(name, entry["title"], entry.get("note", ""), entry["seeds"], recipes, figures, folder)


def table_names(folder: Path) -> list[str]:
    """Names of the tables of a folder."""
    return list(_read_tables(folder)[0])


def _read_tables(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / "tables.toml"
    content = load_toml(path)
    tables, paper = content.get("tables", {}), content.get("paper", {})
    if not tables:
        raise FileFormatError(f"{path} holds no tables, but expected [tables.NAME]")
    for name, entry in tables.items():
        if not {"title", "seeds", "recipes"} <= entry.keys():
            raise FileFormatError(f"{path}: [tables.{name}] needs title, seeds and recipes")
    return tables, paper


def _require_same(config: RunConfig, folder: Path) -> None:
    """A record that was made with other options than its recipe's must not stand for it."""
    there = resolve(RunConfig(**read_record(folder)["config"])).canonical()  # with options that are newer than it
    wanted = replace(resolve(config), image_size=there.image_size).canonical()
    if there.to_dict() != wanted.to_dict():
        raise FileFormatError(f"{folder} is of another configuration than its recipe: remove it, or mend the recipe")


def run_missing(table: Table, runs: Path, console: Console, *, minutes: float | None = None) -> int:
    """Runs or resumes what is missing, and keeps the records.

    Args:
        table: whose units.
        runs: folder for the run folders; processes that share it divide the work.
        console: for what is said on the way.
        minutes: no unit is begun that would end later, as far as those before it tell; one is begun in any case.

    Returns:
        The number of units that are still missing.
    """
    begun, longest = time.monotonic(), 0.0
    for recipe, seed in list(table.missing()):
        start = time.monotonic()
        if (table.records(recipe) / f"seed-{seed}" / "record.json").exists():
            continue  # of another process
        if minutes is not None and start - begun + longest > 60 * minutes:
            console.print("No time for another unit.")
            break
        folder = runs / recipe.name / f"seed-{seed}"
        try:
            run(recipe.run_of(seed), folder, resume=True, console=console)
        except (BusyError, DataError, NonFiniteError) as error:
            console.print(f"Left out: {recipe.name} seed {seed}: {error}", highlight=False, soft_wrap=True)
            continue
        kept = table.records(recipe) / f"seed-{seed}" / "record.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as temporary:
            shutil.copyfile(folder / "record.json", temporary)
        longest = max(longest, time.monotonic() - start)
    return len(list(table.missing()))


def render(table: Table) -> str:
    """The table in Markdown: our figures beside the published ones, and what was not run."""
    there = [table.records(recipe) for recipe in table.recipes if any(table.records(recipe).rglob("record.json"))]
    lines: dict[str, list[list[str]]] = {}
    header, shared = ["method", "aug", "seeds"], "nothing was run yet"
    if there:
        comparison = compare(there, by_commit=False)
        header, rows = cells(comparison)
        shared = "; ".join([f"all: {comparison.shared}", *(note.removesuffix(".") for note in comparison.notes)])
        for group, row in zip(read_groups(there, by_commit=False)[0], rows, strict=True):
            name = next(iter(group.folders.values())).parent.name
            lines.setdefault(name, []).append(row)
    figures = [name for name in ("knn", "linear") if any(name in paper for paper in table.paper.values())]
    result = []
    for recipe in table.recipes:
        options = [f"{key}={value}" for items in recipe.config.set.values() for key, value in items.items()]
        blank = [recipe.config.method, " ".join([recipe.config.aug, *options]), *[""] * (len(header) - 2)]
        blank[header.index("seeds")] = "not run"
        published = table.paper.get(recipe.name, {})
        added = [f"{published[name]:.2f}" if name in published else "" for name in figures]
        result += [[*row, *added] for row in lines.get(recipe.name, [blank])]
    result = [[*row, *[""] * len(figures)] for row in _starts(table, header)] + result
    titles = {"knn": "paper*: kNN, %", "linear": "paper*: linear, %"}
    body = markdown([*header, *(titles[name] for name in figures)], result)
    missing = len(list(table.missing()))
    parts = [f"**{table.title}**", body, f"{shared[0].upper()}{shared[1:]}.", table.note]
    parts.append(f"\\* {PAPER}." if figures else "")
    parts.append(f"`idaa-bench table {table.name}`" + (f" ({missing} runs are missing)" if missing else ""))
    return "\n\n".join(part for part in parts if part) + "\n"


def _starts(table: Table, header: list[str]) -> Iterator[list[str]]:
    """Rows of what a table's runs had before their training: bare pixels, and the untrained network."""
    paths = [path for recipe in table.recipes for path in sorted(table.records(recipe).glob("*/record.json"))]
    records = [read_record(path.parent) for path in paths]
    by_seed = {record["config"]["seed"]: record["initial"] for record in records}
    if len({(record["config"]["backbone"], record["config"]["image_size"]) for record in records}) != 1:
        return
    pixels = [initial["knn_pixels"] for initial in by_seed.values() if "knn_pixels" in initial][:1]
    untrained = {name: [initial[name] for initial in by_seed.values()] for name in ("knn", "linear")}
    for name, found in ("raw pixels", {"knn": pixels}), ("untrained network", untrained):
        texts = {"method": name, "seeds": str(len(found["knn"]))}
        texts |= {title: _spread([100 * value for value in found.get(key, [])]) for key, title in COLUMNS.items()}
        if found["knn"]:
            yield [texts.get(column, "") for column in header]


def pages(folder: Path) -> dict[Path, str]:
    """What README.md and the heads of the recipes are to hold, as the records give it, by file."""
    tables = [read_table(folder, name) for name in table_names(folder)]
    page = folder / "README.md"
    by_name = {table.name: table for table in tables}
    texts = {page: SECTION.sub(lambda found: f"{found[1]}\n{render(by_name[found[2]])}\n{found[3]}", page.read_text())}
    for table in tables:
        for recipe in table.recipes:
            path = folder / "recipes" / f"{recipe.name}.toml"
            body = [line for line in path.read_text().splitlines() if not line.startswith("#")]
            texts.setdefault(path, "\n".join([*_head(table, recipe), *body]) + "\n")
    return texts


def _head(table: Table, recipe: Recipe) -> Iterator[str]:
    """Comments of a recipe: its command, what is expected of it, and what the paper says."""
    seeds = " ".join(f"--seed {seed}" for seed in range(table.seeds))
    yield f"# idaa-bench run --config {table.folder.name}/recipes/{recipe.name}.toml {seeds}"
    records = [read_record(path.parent) for path in sorted(table.records(recipe).glob("*/record.json"))]
    if records:
        scores = [f"{name} {_spread([100 * record['last'][name] for record in records])}" for name in ("knn", "linear")]
        minutes = mean(record["time"]["train_s"] for record in records) / 60
        device = records[0]["device"]
        yield f"# expected: {', '.join(scores)} ({len(records)} seeds), {minutes:.0f} min of training, {device['name']}"
    else:
        yield "# not run yet"
    if paper := table.paper.get(recipe.name):
        yield f"# paper: {', '.join(f'{name} {value}' for name, value in paper.items())} ({PAPER})"


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "") if values else ""


def write_pages(folder: Path) -> list[Path]:
    """Renders README.md and the heads of the recipes; returns the files that changed."""
    changed = {path: text for path, text in pages(folder).items() if path.read_text() != text}
    for path, text in changed.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    return list(changed)
