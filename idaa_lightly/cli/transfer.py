"""Command `idaa-bench transfer`."""

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
    help="Data sets, separated by commas: digits, torchvision's cifar10, cifar100, stl10, fashionmnist, svhn, dtd, "
    "flowers102, aircraft, pets, food101 and cars, or NAME=folder:PATH. The cars cannot be downloaded and must be in "
    "--data-dir.",
)
@click.option(
    "--data-dir",
    default="data",
    show_default=True,
    help="Directory of torchvision's data sets. Missing ones are downloaded into it.",
)
def transfer(runs: tuple[Path, ...], to: str, data_dir: str) -> None:
    """Evaluate runs by a linear layer on other data sets.

    RUNS are run directories, or directories that hold runs at any depth. For runs that differ only in their seed, mean
    ± standard deviation is shown too.

    Images are embedded without augmentation, with the size and normalisation that the run was trained with. The layer
    is a logistic regression by L-BFGS. Its L2 strength is chosen on a tenth of the training images, never on test
    images. If torchvision has separate training and validation images (dtd, flowers102, aircraft, pets), both are used
    for training.

    The table shows top-1 accuracy. For data sets named flowers102, aircraft, pets and caltech101 it shows mean
    per-class accuracy, as in Kornblith et al., CVPR 2019. Both are kept.

    A folder has the layout of `idaa-bench run --data`: train/ and test/ (or val/), with one folder per class in each.
    Arrange CUB-200 by the split that comes with it.

    Results are kept in the run's transfer.json. They are computed again only if the weights change. If the images of a
    folder have changed, delete transfer.json first.

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
