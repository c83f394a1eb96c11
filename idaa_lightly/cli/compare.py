"""`idaa-bench compare`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from idaa_lightly.cli.terminal import console
from idaa_lightly.errors import UsageError

ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex"}


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(list(ENDINGS.values())),
    help="Print it as a table for a README, a spreadsheet or a paper. Default: by the ending of --out, else for the "
    "terminal.",
)
@click.option(
    "--against", default="none", show_default=True, help="Augmentation that differences are to, such as random."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the differences as a forest plot, .svg or .png.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write it to, such as table.md, .csv or .tex.")
def compare(runs: tuple[Path, ...], form: str | None, against: str, plot: Path | None, out: Path | None) -> None:
    """Compare finished runs: mean ± standard deviation over seeds, differences to `none`, cost, equal compute.

    RUNS are run folders, or folders that hold runs at any depth. Runs are averaged if they differ in their seed only;
    --workers and --data-dir change no result, and may differ, too. Where groups differ in data, epochs, commit or
    device, a column and a warning say so.

    Differences are to `none` with otherwise the same options, seed by seed, with the 95 % interval of Student's t; to
    the control, a third view in a random direction, with --against random: what the search alone is worth.
    Accuracy at equal compute is read off each run's history where it has trained as long as the cheapest group did:
    epochs × fewest FLOPs / own FLOPs, linear between evaluations. It is a lower bound, since learning rates that were
    to fall until the end have not. Attacks are counted; evaluation and the training of a VAE are not.

    \b
    Examples:
      idaa-bench compare runs
      idaa-bench compare runs --against random --plot forest.svg
      idaa-bench compare runs/eps runs/none --format latex --out table.tex
    """
    form = form or (ENDINGS.get(out.suffix) if out else "terminal")
    if form is None:
        raise UsageError(f"--out is {out}, but expected a name in {', '.join(ENDINGS)}: or add --format")
    from idaa_lightly.bench.compare import text as tables
    from idaa_lightly.bench.compare.groups import compare as compared

    if plot and plot.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot is {plot}, but expected a name that ends in .svg or .png")
    comparison = compared(runs, against=against)
    if plot:
        from idaa_lightly.bench.compare.forest import contrasts_of, save_forest

        contrasts = contrasts_of(comparison)
        if not contrasts:
            raise UsageError(f"--plot has nothing to draw: no run shares its seed and options with one of {against!r}")
        save_forest(contrasts, plot)
    if form == "terminal":
        header, rows = tables.cells(comparison)
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        console().print(table)
        for line in (f"All groups: {comparison.shared}.", *comparison.notes):
            click.echo(line)
        return
    text = {"markdown": tables.to_markdown, "csv": tables.to_csv, "latex": tables.to_latex}[form](comparison)
    if out is None:
        click.echo(text, nl=False)
        return
    from idaa_lightly.files import atomic_write

    with atomic_write(out) as temporary:
        temporary.write_text(text)
    click.echo(f"Written to {out}")
