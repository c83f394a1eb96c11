"""Command `idaa-bench identity`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from idaa_lightly.cli.terminal import console

COLUMNS = (
    "views",
    "lost, %",
    "ratio, median",
    "5 to 95 %",
    "L2, pixels",
    "L∞, pixels",
    "L2, own units",
    "L∞, own units",
)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--aug",
    default="random,clae,idaa",
    show_default=True,
    help="Augmentations whose views are measured, separated by commas.",
)
@click.option(
    "--samples",
    type=click.IntRange(2),
    default=1024,
    show_default=True,
    help="Number of training images to use, a random sample that is always the same.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory for the results, with a suffix per run if there are several. Default: identity/ in the run "
    "directory.",
)
def identity(run: Path, aug: str, samples: int, out: Path | None) -> None:
    """Measure whether views are hard and keep the identity.

    RUN is a run directory, or a directory that holds runs at any depth. All augmentations attack the run's encoder.
    The run's own augmentation gets the run's options, the others get their defaults, or the run's VAE and eps if both
    use a VAE. All get mode=exact and place=add, so that every sample is attacked from the same view.

    For each sample, two distances are measured between the embeddings that the loss compares: from the sample to its
    own view, and to the nearest view of another sample. The table shows their ratio: near 0 the view is easy, above 1
    the identity is lost. It also shows the L2 and L∞ length of each change, in pixels and in "own units". Own units
    are those of the searched space, which is the bottleneck for idaa.

    The output directory gets identity.json, identity.png (Fig. 1 of the IDAA paper), density.png and panels.png.

    \b
    Example:
      idaa-bench identity runs/RUN --aug random,clae,idaa
    """
    from idaa_lightly.bench.evaluate.identity import study
    from idaa_lightly.bench.evaluate.store import runs_below

    for suffix, folder in runs_below(run).items():
        place = Path(f"{out}{suffix}") if out else folder / "identity"
        figures = study(folder, [name.strip() for name in aug.split(",")], place, samples=samples)
        table = Table(*COLUMNS, title=str(folder) if suffix else None)
        for name, part in figures.items():
            low, _, median, _, high = part["hardness"]
            sizes = [f"{part[norm]:.3f}" if norm in part else "" for norm in ("l2", "linf", "own_l2", "own_linf")]
            table.add_row(name, f"{100 * part['lost']:.2f}", f"{median:.2f}", f"{low:.2f} to {high:.2f}", *sizes)
        console().print(table)
        click.echo(f"Written to {place}")
