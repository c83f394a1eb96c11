"""Command `idaa-bench report`."""

from __future__ import annotations

from pathlib import Path

import click

from idaa_lightly.errors import UsageError

SAID = 10
"""Largest number of lines to print about missing parts."""


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default="report.html", show_default=True, help="HTML file to write."
)
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write a report on finished runs as one HTML page.

    RUNS are run directories, or directories that hold runs at any depth. The page holds:

    \b
      - the table of `idaa-bench compare`
      - learning curves, with bands over seeds
      - accuracy against time and against FLOPs
      - a plot for every option with several values
      - results of `idaa-bench identity`, and panels of views
      - the configuration and the versions of every run

    The page needs no network and no other file. Clicking a column header sorts the table. Filters hide groups on the
    whole page. Parts that are missing in a run are left out, and listed in the output and at the end of the page.

    \b
    Examples:
      idaa-bench report runs
      idaa-bench report runs/eps runs/none --out eps.html
    """
    if out.suffix not in (".html", ".htm"):
        raise UsageError(f"--out is {out}, but expected a name that ends in .html")
    from idaa_lightly.bench.report.page import write_report

    missing = write_report(runs, out)
    for line in missing[:SAID]:
        click.echo(line)
    if len(missing) > SAID:
        click.echo(f"... and {len(missing) - SAID} more like this, at the end of the page.")
    click.echo(f"Written to {out}: {out.stat().st_size / 1e6:.1f} MB")
