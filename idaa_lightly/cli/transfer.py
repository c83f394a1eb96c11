"""`idaa-bench transfer`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Column, Table

from idaa_lightly.cli.terminal import console, mean_label


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    metavar="NAME,...",
    help="Data sets with commas between them: cifar10, cifar100, stl10, fashionmnist, svhn, dtd, flowers102, aircraft, "
    "pets, food101, cars (torchvision's; the cars must be there), digits; or NAME=folder:PATH.",
)
@click.option(
    "--data-dir", default="data", show_default=True, help="Where torchvision's data sets are, or are downloaded to."
)
def transfer(runs: tuple[Path, ...], to: str, data_dir: str) -> None:
    """Evaluate runs on other data sets: a linear layer on frozen features.

    RUNS are run folders, or folders that hold runs at any depth. Runs that differ in their seed only get a mean ±
    standard deviation.

    Images have the size and the normalisation that the run was trained with, and no augmentation. The layer is a
    logistic regression by L-BFGS; its L2 strength is chosen on a tenth of the training images, never on test images.
    Where torchvision has training and validation images apart (dtd, flowers102, aircraft, pets), both are for training.

    The figure is top-1, but the mean per-class accuracy for flowers102, aircraft, pets and caltech101, by these names,
    as in Kornblith et al., CVPR 2019; both are kept. A folder has train/ and test/ or val/ with a folder per class in
    each, as for `idaa-bench run --data`; for CUB-200, arrange it by the images' own split.

    Results are kept in the run's transfer.json, and what is there is not done again, unless the weights have changed:
    where the images of a folder have, delete it first.

    \b
    Examples:
      idaa-bench transfer runs/RUN --to cifar100,dtd,flowers102,aircraft,pets
      idaa-bench transfer runs --to cub200=folder:data/cub,birdsnap=folder:data/birdsnap
    """
    from idaa_lightly.bench.evaluate.transfer import METRICS, evaluate_transfer, metric_of, parse_sets

    sets = parse_sets(to)
    families = evaluate_transfer(runs, sets, data_dir=data_dir)
    table = Table(Column("run", overflow="fold"), caption="on the test images")
    for name in sets:
        table.add_column(f"{name}\n{METRICS[metric_of(name)]}, %", overflow="fold")
    for family in families:
        for target, results in family.results.items():
            table.add_row(str(target), *(f"{100 * results[name]['accuracy']:.2f}" for name in sets))
        if len(family.results) > 1:
            spreads = [family.spread(name, lambda entry: entry["accuracy"]) or () for name in sets]
            table.add_row(
                mean_label(family), *(" ± ".join(f"{100 * value:.2f}" for value in spread) for spread in spreads)
            )
        table.add_section()
    console().print(table)
