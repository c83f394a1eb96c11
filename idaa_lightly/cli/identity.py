"""`idaa-bench identity`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from idaa_lightly.cli.terminal import console


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--aug", default="random,clae,idaa", show_default=True, help="Searched augmentations, with commas between them."
)
@click.option("--samples", type=click.IntRange(2), default=1024, show_default=True, help="Training images to use.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the figures. Default: identity/ in the run folder."
)
def identity(run: Path, aug: str, samples: int, out: Path | None) -> None:
    """Are views hard, and do they keep their sample's identity?

    RUN is a run folder. For each sample, the distance of its embedding to its own view is compared with that to the
    nearest view of another sample, in the space of the loss: where the first is larger, the identity is lost; a ratio
    near 0 is an easy view. Own units are those of the space that is searched: the bottleneck for idaa. All
    augmentations attack the same encoder; those of the run's own name have its options.

    The folder gets identity.json, identity.png (Fig. 1 of the IDAA paper), density.png and panels.png.

    \b
    Example:
      idaa-bench identity runs/RUN --aug random,clae,idaa
    """
    from idaa_lightly.bench.evaluate.identity import study

    folder = out or run / "identity"
    figures = study(run, [name.strip() for name in aug.split(",")], folder, samples=samples)
    table = Table(
        "views", "lost, %", "ratio, median", "5 to 95 %", "L2, pixels", "L∞, pixels", "L2, own units", "L∞, own units"
    )
    for name, part in figures.items():
        low, _, median, _, high = part["hardness"]
        sizes = [f"{part[norm]:.3f}" if norm in part else "" for norm in ("l2", "linf", "own_l2", "own_linf")]
        table.add_row(name, f"{100 * part['lost']:.2f}", f"{median:.2f}", f"{low:.2f} to {high:.2f}", *sizes)
    console().print(table)
    click.echo(f"Written to {folder}")
