"""Tables made of recipes: which runs are missing of them, and running those.

A folder such as benchmarks/ holds

    recipes/NAME.toml                   one configuration of `idaa-bench run --config`, without its seed
    tables.toml                         [tables.NAME] as in `Table`; published accuracies in percent, knn and linear,
                                        in [paper.METHOD.AUG], or [tables.NAME.paper.RECIPE]
    records/RECIPE/seed-N/record.json   what a finished run left; its weights stay in the run folder
    records/RECIPE/seed-N/identity/     what the study of that run left, where a table asks for one

and a page that `idaa_lightly.bench.published.pages` renders.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idaa_lightly.bench.compare.groups import BASELINE
from idaa_lightly.bench.config import RunConfig, load_toml, read_toml
from idaa_lightly.bench.evaluate.identity import study
from idaa_lightly.bench.record import config_of, read_record
from idaa_lightly.bench.run.setup import resolve
from idaa_lightly.bench.run.train import run
from idaa_lightly.errors import BusyError, DataError, FileFormatError, NonFiniteError, UsageError, suggestion
from idaa_lightly.files import atomic_write

log = logging.getLogger(__name__)
PUBLISHED = "ResNet-18, CIFAR-10, 300 epochs; best epoch on the test images; kNN on the projection"


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
        recipes: in the order of the rows; those of the pairs where there are some.
        paper: published figures in percent, by recipe: knn and linear.
        published: how those were obtained.
        folder: that holds recipes and records.
        against: augmentation that differences are to.
        columns: Keys of the columns to show; all that are not empty if there are none.
        reach: accuracies by kNN, in percent, whose cost is told.
        study: augmentations by which the identity of views is studied, on the encoder of each recipe's seed 0.
        pairs: Pairs of recipes whose difference is a row, instead of the recipes' own rows.
    """

    name: str
    title: str
    note: str
    seeds: int
    recipes: tuple[Recipe, ...]
    paper: dict[str, dict[str, float]]
    published: str
    folder: Path
    against: str = BASELINE
    columns: tuple[str, ...] = ()
    reach: tuple[float, ...] = ()
    study: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    def records(self, recipe: Recipe) -> Path:
        """Folder of a recipe's records."""
        return self.folder / "records" / recipe.name

    def studied(self, recipe: Recipe) -> Path:
        """Folder of what the study of a recipe left."""
        return self.records(recipe) / "seed-0" / "identity"

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
    names = entry.get("recipes", list(dict.fromkeys(recipe for pair in entry.get("pairs", ()) for recipe in pair)))
    recipes = tuple(Recipe(recipe, RunConfig(**read_toml(folder / "recipes" / f"{recipe}.toml"))) for recipe in names)
    usual = {recipe.name: paper.get(recipe.config.method, {}).get(recipe.config.aug, {}) for recipe in recipes}
    figures = entry.get("paper", usual)
    return Table(
        name,
        entry["title"],
        entry.get("note", ""),
        entry["seeds"],
        recipes,
        figures,
        entry.get("published", PUBLISHED),
        folder,
        entry.get("against", BASELINE),
        *(tuple(entry.get(key, ())) for key in ("columns", "reach", "study", "pairs")),
    )


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
        if not {"title", "seeds"} <= entry.keys() or len({"recipes", "pairs"} & entry.keys()) != 1:
            raise FileFormatError(f"{path}: [tables.{name}] needs title, seeds, and either recipes or pairs")
        if any(len(pair) != 2 for pair in entry.get("pairs", ())):
            raise FileFormatError(
                f"{path}: [tables.{name}] has pairs {entry['pairs']}, but expected two recipes in each"
            )
    return tables, paper


def _require_same(config: RunConfig, folder: Path) -> None:
    """A record that was made with other options than its recipe's must not stand for it."""
    there = resolve(config_of(read_record(folder), folder)).canonical()  # with options that are newer than it
    wanted = replace(resolve(config), image_size=there.image_size).canonical()
    if there.to_dict() != wanted.to_dict():
        raise FileFormatError(f"{folder} is of another configuration than its recipe: remove it, or mend the recipe")


def run_missing(table: Table, runs: Path, *, minutes: float | None = None) -> int:
    """Run or resume what is missing, and keep the records.

    Args:
        table: The table.
        runs: Directory for the run directories. Processes that share it divide the work.
        minutes: Begin no unit that would end later, judged by those before it. One is begun in any case.

    Returns:
        The number of units that are still missing.
    """
    begun, longest = time.monotonic(), 0.0
    for recipe, seed in list(table.missing()):
        start = time.monotonic()
        if (table.records(recipe) / f"seed-{seed}" / "record.json").exists():
            continue  # of another process
        if minutes is not None and start - begun + longest > 60 * minutes:
            log.info("No time for another unit.")
            break
        folder = runs / recipe.name / f"seed-{seed}"
        try:
            run(recipe.run_of(seed), folder, resume=True)
        except (BusyError, DataError, NonFiniteError) as error:
            log.info(f"Left out: {recipe.name} seed {seed}: {error}")
            continue
        kept = table.records(recipe) / f"seed-{seed}" / "record.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as temporary:
            shutil.copyfile(folder / "record.json", temporary)
        longest = max(longest, time.monotonic() - start)
    for recipe in table.recipes if table.study else ():
        kept, folder = table.studied(recipe), runs / recipe.name / "seed-0"
        if not (kept / "identity.json").exists() and (folder / "record.json").exists():
            study(folder, list(table.study), kept)
    return len(list(table.missing()))
