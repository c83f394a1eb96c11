"""Tables made of recipes: which of their runs are missing, and running those.

A directory such as benchmarks/ holds

    recipes.toml                        configurations by name, without their seeds; see `read_recipe`
    tables.toml                         [tables.NAME] as in `Table`; published accuracies in percent, knn and linear,
                                        in [paper.METHOD.AUG] or [tables.NAME.paper.RECIPE]
    questions.toml                      [NAME] as in `Question`, in the order of the page
    records/RECIPE/seed-N/record.json   record of a finished run; its weights stay in the run directory
    records/RECIPE/seed-N/identity/     study of that run, if a table asks for one

and the pages that `idaa_lightly.bench.published.pages` renders.
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
from idaa_lightly.bench.config import RunConfig, load_toml, recipe_in
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
    """A configuration with a name."""

    name: str
    config: RunConfig

    def run_of(self, seed: int) -> RunConfig:
        """Return the run of one seed."""
        return replace(self.config, seed=seed)


@dataclass(frozen=True)
class Table:
    """A published table, or one of ours.

    Attributes:
        name: Name, as in `idaa-bench table NAME`.
        title: The question and the scale.
        note: Facts needed to read the table.
        seeds: Each recipe is run for seeds 0 to seeds − 1.
        recipes: Recipes in the order of the rows. Those of the pairs if there are pairs.
        paper: Published accuracies in percent, by recipe: knn and linear.
        published: Protocol of the published accuracies.
        folder: Directory of recipes and records.
        against: Augmentation that differences refer to.
        columns: Keys of the columns to show. Without them, all that are not empty, but no times, devices or commits.
        reach: kNN accuracies in percent whose cost is shown.
        study: Augmentations whose views are studied on the encoder of each recipe's seed 0.
        pairs: Pairs of recipes whose difference is a row, instead of the recipes' own rows.
        joint: The intervals of the pairs hold for all of them at once; see `differences_of`.
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
    joint: bool = False

    def records(self, recipe: Recipe) -> Path:
        """Return the directory of a recipe's records."""
        return self.folder / "records" / recipe.name

    def studied(self, recipe: Recipe) -> Path:
        """Return the directory of the study of a recipe."""
        return self.records(recipe) / "seed-0" / "identity"

    def missing(self) -> Iterator[tuple[Recipe, int]]:
        """Yield recipes and seeds without a record, all recipes of a seed before the next seed.

        Raises:
            FileFormatError: A record has another configuration than its recipe.
        """
        for seed in range(self.seeds):
            for recipe in self.recipes:
                folder = self.records(recipe) / f"seed-{seed}"
                if not (folder / "record.json").exists():
                    yield recipe, seed
                else:
                    _require_same(recipe.run_of(seed), folder)


@dataclass(frozen=True)
class Question:
    """A question that tables answer.

    Attributes:
        name: Name of its page and picture.
        title: The question.
        conclusion: The answer, in two or three sentences.
        tables: Names of its tables.
        contrasts: Label of a row of the forest plot, and the two recipes whose difference it shows.
        joint: The intervals of the plot hold for all rows at once; see `differences_of`.
        picture: Path of its picture in the directory; empty if it has none.
        page: Page with its section, such as README.md.
    """

    name: str
    title: str
    conclusion: str
    tables: tuple[str, ...]
    contrasts: tuple[tuple[str, str, str], ...]
    joint: bool
    picture: str
    page: str


def read_questions(folder: Path) -> list[Question]:
    """Return the questions of a directory; none if it has no questions.toml.

    Raises:
        FileFormatError: The file cannot be read, or a question lacks something.
    """
    path = folder / "questions.toml"
    questions = []
    for name, entry in load_toml(path).items() if path.exists() else ():
        rows = entry.get("contrasts", ())
        if not {"title", "conclusion", "tables"} <= entry.keys() or any(len(row) != 3 for row in rows):
            raise FileFormatError(
                f"{path}: [{name}] needs title, conclusion and tables, and contrasts of a label and two recipes each"
            )
        contrasts = tuple((label, one, other) for label, one, other in rows)
        picture = entry.get("picture", f"figures/{name}.svg" if contrasts else "")
        text = " ".join(entry["conclusion"].split())
        joint, page = entry.get("joint", False), entry.get("page", "README.md")
        questions.append(Question(name, entry["title"], text, tuple(entry["tables"]), contrasts, joint, picture, page))
    return questions


def read_table(folder: Path, name: str) -> Table:
    """Return one of the tables of a directory.

    Raises:
        FileFormatError: The directory has no tables.toml, or a file cannot be read.
        UsageError: There is no such table or recipe.
    """
    tables, paper = _read_tables(folder)
    if name not in tables:
        raise UsageError(f"no table {name!r} in {folder}; known: {', '.join(tables)}.{suggestion(name, tables)}")
    entry = tables[name]
    names = entry.get("recipes", list(dict.fromkeys(recipe for pair in entry.get("pairs", ()) for recipe in pair)))
    path = folder / "recipes.toml"
    content = load_toml(path)
    recipes = tuple(Recipe(recipe, RunConfig(**recipe_in(content, path, recipe))) for recipe in names)
    usual = {recipe.name: paper.get(recipe.config.method, {}).get(recipe.config.aug, {}) for recipe in recipes}
    figures = entry.get("paper", usual)
    columns, reach, studied = (tuple(entry.get(key, ())) for key in ("columns", "reach", "study"))
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
        columns,
        reach,
        studied,
        tuple((one, other) for one, other in entry.get("pairs", ())),
        entry.get("joint", False),
    )


def table_names(folder: Path) -> list[str]:
    """Return the names of the tables of a directory."""
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
    """Refuse a record that was made with other options than its recipe's."""
    there = resolve(config_of(read_record(folder))).canonical()  # with options that are newer than it
    wanted = replace(resolve(config), image_size=there.image_size).canonical()
    if there.to_dict() != wanted.to_dict():
        raise FileFormatError(f"{folder} is of another configuration than its recipe: remove it, or correct the recipe")


def run_missing(table: Table, runs: Path, *, minutes: float | None = None) -> int:
    """Run or resume what is missing, and keep the records.

    Args:
        table: The table.
        runs: Directory for the run directories. Processes that share it divide the work.
        minutes: Start no unit that would end after this time, judging by the longest so far. The first always starts.

    Returns:
        The number of units that are still missing.
    """
    begun, longest = time.monotonic(), 0.0
    for recipe, seed in list(table.missing()):
        start = time.monotonic()
        if (table.records(recipe) / f"seed-{seed}" / "record.json").exists():
            continue  # of another process
        if minutes is not None and longest and start - begun + longest > 60 * minutes:
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
