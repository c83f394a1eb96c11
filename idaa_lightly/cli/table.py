"""Command `idaa-bench table`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Column, Table

from idaa_lightly.cli.terminal import console
from idaa_lightly.errors import UsageError


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks"),
    show_default=True,
    help="Directory with recipes.toml, tables.toml, questions.toml and records/.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/recipes"),
    show_default=True,
    help="Directory for the run directories. Processes that share it divide the work.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    help="Per table, start no further run that would end after this many minutes, judging by the longest run so far. "
    "The first missing run is always started.",
)
@click.option("--render", is_flag=True, help="Train nothing, and only render the tables from the records.")
def table(names: tuple[str, ...], folder: Path, out: Path, minutes: float | None, render: bool) -> None:
    """Train and render the tables of benchmarks/, in a clone of the repository.

    NAMES are tables in tables.toml. Without a name, the tables are listed.

    The missing runs of the tables are trained. Then the tables are rendered, with the paper's numbers next to ours.
    Interrupted runs are resumed. The record of a finished run is kept in records/, and the run is not trained again.
    Recipes without a run are named below their table. A table of pairs shows differences between recipes, paired by
    seed, with 95 % intervals.

    Rendering also updates the pages, pictures and results.csv of --folder from all records.

    \b
    Examples:
      idaa-bench table                 list the tables and the number of finished runs
      idaa-bench table laptop          train or resume the missing runs, then render the table
      idaa-bench table 1 --render      render the table from the records
      idaa-bench table 1 --minutes 10  train one run, and more if they fit into 10 minutes
    """
    from idaa_lightly.bench.published import pages, recipes, tables

    if not (folder / "tables.toml").exists():
        raise UsageError(
            f"{folder} has no tables.toml: tables need the directory benchmarks/ of idaa-lightly's repository, which "
            "is not installed with the package. Change to a clone, or name that directory by --folder"
        )
    terminal = console()
    if not names:
        listing = Table(Column("name", no_wrap=True), Column("runs", no_wrap=True), "title")
        for name in recipes.table_names(folder):
            entry = recipes.read_table(folder, name)
            missing, total = len(list(entry.missing())), entry.seeds * len(entry.recipes)
            listing.add_row(name, f"{total - missing} of {total}", entry.title)
        terminal.print(listing)
        return
    chosen = [recipes.read_table(folder, name) for name in names]
    if not render:
        for entry in chosen:
            recipes.run_missing(entry, out, minutes=minutes)
    for entry in chosen:
        click.echo(tables.render(entry))
    for path in pages.write_pages(folder):
        click.echo(f"Rendered: {path}", err=True)
