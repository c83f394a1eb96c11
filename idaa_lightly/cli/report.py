"""`idaa-bench report`."""

from __future__ import annotations

from pathlib import Path

import click

from idaa_lightly.errors import UsageError

SAID = 10  # lines on what is missing


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default="report.html", show_default=True, help="The page, an .html file."
)
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write finished runs as one HTML page to look at, print and send.

    RUNS are run folders, or folders that hold runs at any depth, as for `idaa-bench compare`. The page holds that
    table, learning curves with bands over seeds, accuracy against time, a plot for every option with several values,
    the studies of `idaa-bench identity`, view panels, and every run's configuration and versions. A click on a column
    sorts it; filters hide groups on the whole page. It needs no network and no other file.

    What is missing in a run is left out, and named here and at the end of the page.

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
