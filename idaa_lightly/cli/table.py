"""`idaa-bench table`."""

from __future__ import annotations

from pathlib import Path

import click

from idaa_lightly.cli.terminal import console


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
    help="Folder for the run folders; any number of processes may share it and divide the work.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    help="Begin no run that would end later than this, as far as the runs before it tell.",
)
@click.option("--render", is_flag=True, help="Run nothing: only render what the records hold.")
def table(names: tuple[str, ...], folder: Path, out: Path, minutes: float | None, render: bool) -> None:
    """Run what is missing of published tables, and render them beside the published figures.

    NAMES are tables of tables.toml. Without a name the tables are listed. Interrupted runs go on where they were.
    Finished runs leave their record in records/ and are not run again. A table of pairs shows differences of recipes,
    paired by seed, with 95 % intervals. Afterwards the pages, pictures and the spreadsheet of the directory are
    rendered from all records.

    \b
    Examples:
      idaa-bench table                 which tables there are, and what is missing
      idaa-bench table laptop          runs or resumes its cells, then renders it
      idaa-bench table 1 --render      renders it from the records
      idaa-bench table 1 --minutes 10  as many runs as fit into a slot
    """
    from idaa_lightly.bench.published import pages, recipes, tables

    terminal = console()
    if not names:
        for name in recipes.table_names(folder):
            entry = recipes.read_table(folder, name)
            missing, total = len(list(entry.missing())), entry.seeds * len(entry.recipes)
            terminal.print(f"{name:12} {total - missing} of {total} runs: {entry.title}", highlight=False)
        return
    chosen = [recipes.read_table(folder, name) for name in names]
    if not render:
        for entry in chosen:
            recipes.run_missing(entry, out, minutes=minutes)
    for entry in chosen:
        click.echo(tables.render(entry))
    for path in pages.write_pages(folder):
        click.echo(f"Rendered: {path}", err=True)
