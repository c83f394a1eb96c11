"""Command `idaa-bench compare`."""

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
    help="Format of the table, for a README, a spreadsheet or a paper. Default: the suffix of --out decides; without "
    "--out, a table that fits the terminal, or Markdown if the output is piped.",
)
@click.option(
    "--against", default="none", show_default=True, help="Augmentation of the baseline, such as none or random."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the differences as a forest plot, .svg or .png.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write, such as table.md, table.csv or table.tex.")
def compare(runs: tuple[Path, ...], form: str | None, against: str, plot: Path | None, out: Path | None) -> None:
    """Compare finished runs in one table.

    The table shows accuracy, differences from a baseline, cost and accuracy at equal compute.

    RUNS are run directories, or directories that hold runs at any depth. Runs form a group if they differ only in
    --seed, or in --workers, --data-dir, --logger and --save-every, which change no result. The table shows mean ±
    standard deviation per group. If groups differ in data, epochs, commit, plugin files or device, a column and a
    warning say so.

    The baseline has --aug none and otherwise equal options. Differences from it are paired by seed. Their 95 %
    intervals are by Student's t. `--against random` compares with IDAA's control instead, which perturbs the third
    view in a random direction. The difference from it is the effect of the search alone.

    Accuracy at equal compute is the kNN accuracy that a run had when it had used as many FLOPs as the cheapest group
    used in total. It is measured on the validation images and interpolated linearly between evaluations, at epoch =
    epochs × (fewest FLOPs − own FLOPs of fitting) / own FLOPs of training. It is a lower bound, because the learning
    rate had not decayed fully by then. FLOPs include attacks and the fitting of a VAE, but not evaluations. Records of
    schema 2 and older lack the fitting.

    \b
    Examples:
      idaa-bench compare runs
      idaa-bench compare runs --against random --plot forest.svg
      idaa-bench compare runs/eps runs/none --format latex --out table.tex
    """
    shown = "terminal" if console().is_terminal else "markdown"
    form = form or (ENDINGS.get(out.suffix) if out else shown)
    if form is None:
        raise UsageError(f"--out is {out}, but expected a name that ends in {', '.join(ENDINGS)}; or add --format")
    from idaa_lightly.bench.compare import text as tables
    from idaa_lightly.bench.compare.comparison import compare as compared

    if plot and plot.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot is {plot}, but expected a name that ends in .svg or .png")
    comparison = compared(runs, against=against)
    if plot:
        from idaa_lightly.bench.compare.forest import contrasts_of, save_forest

        contrasts = contrasts_of(comparison)
        if not contrasts:
            raise UsageError(
                "--plot has nothing to draw: it shows differences of accuracies, but no run with labels shares its "
                f"seed and options with one of {against!r}"
            )
        save_forest(contrasts, plot)
    if form == "terminal":
        terminal = console()
        parts, facts = tables.fit(comparison, terminal.width)
        for part in parts:
            table = Table()
            for column in part:
                width = tables.least_width(column, comparison.rows) if column.number else None
                table.add_column(column.title, width=width, overflow="fold")
            for row in comparison.rows:
                table.add_row(*(column.text(row) for column in part))
            terminal.print(table)
        for line in (f"All groups: {', '.join([*facts, comparison.shared])}.", *comparison.notes):
            click.echo(line)
        return
    text = {"markdown": tables.to_markdown, "csv": tables.to_csv, "latex": tables.to_latex}[form](comparison)
    if out is None:
        click.echo(text, nl=False)
        return
    from idaa_lightly.files import atomic_write

    with atomic_write(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"Written to {out}")
