"""Command `idaa-bench semi`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from idaa_lightly.bench.semi.config import SemiConfig
from idaa_lightly.cli.launch import shown, supervised
from idaa_lightly.cli.options import config_options, configs
from idaa_lightly.cli.terminal import console
from idaa_lightly.errors import UsageError


@click.command()
@config_options(
    of=SemiConfig,
    set="Option of the method or the augmentation: method.KEY or aug.KEY, such as method.threshold=0.9. The method "
    "has ratio, threshold, weight, ema, lr and weight_decay. `idaa-bench plugins show NAME` lists those of an "
    "augmentation.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory to write. With several seeds, it gets one subdirectory per seed. Default: one in runs/.",
)
@click.option("--resume", is_flag=True, help="Resume an interrupted run of the same configuration.")
@click.option(
    "--config",
    "config_file",
    metavar="FILE[:RECIPE]",
    help="TOML file that sets any of these options, or a recipe in one, such as "
    "benchmarks/semi/recipes.toml:cifar100-400-idaa. The command line overrides it.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration, and train nothing.")
@click.option(
    "--table",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Train nothing. Print a table of the finished runs below a directory, over augmentations and labels.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="With --table: draw accuracy against epochs, as PNG or SVG."
)
def semi(
    out: Path | None,
    resume: bool,
    config_file: str | None,
    dry_run: bool,
    table: Path | None,
    plot: Path | None,
    **given: Any,
) -> None:
    """Train a classifier on a few labels and many images without labels.

    The method is FixMatch. An augmentation attacks the strong view of the images without labels. The accuracy is that
    of the averaged weights on the test images, after the last epoch.

    \b
    Files of a run directory:
      config.toml, record.json, metrics.csv, checkpoints/   as for `idaa-bench run`
      curves.png, views.png                                 accuracy by epoch, and views of some images
      model.pt                                              state dict of the averaged network

    \b
    Examples:
      idaa-bench semi --method fixmatch --aug idaa --data cifar100 --labels 400 --backbone wrn-28-8
      idaa-bench semi --aug idaa --set aug.place=replace --labels 250 --seed 0 --seed 1 --seed 2
      idaa-bench semi --method supervised --aug none --labels 250
      idaa-bench semi --table runs --plot convergence.png
    """
    if plot and not table:
        raise UsageError(f"--plot is {plot}, but there is no --table DIRECTORY: add it, to say which runs are drawn")
    if table:
        _show(table, plot)
        return
    asked = cast(list[SemiConfig], configs(given, config_file, of=SemiConfig))
    from idaa_lightly.bench.semi.results import table as table_of
    from idaa_lightly.bench.semi.setup import resolve
    from idaa_lightly.bench.semi.train import run as train

    resolved = [resolve(config) for config in asked]
    if dry_run:
        shown(resolved)
        return
    if supervised(resolved[0]):
        return
    first = resolved[0]
    slug = f"{first.data.split(':')[0]}-{first.labels}-{first.method}-{first.aug}-{first.key()}"
    base = out or Path("runs") / slug
    records = []
    for config in resolved:
        folder = base / f"seed-{config.seed}" if len(resolved) > 1 or out is None else base
        if record := train(config, folder, resume=resume):  # With DDP, only the first process gets the record.
            records.append(record)
    if records:
        click.echo(table_of(records))
        console().print(f"Run directory: {base}", soft_wrap=True, highlight=False)


def _show(folder: Path, plot: Path | None) -> None:
    from idaa_lightly.bench.arms import read_records
    from idaa_lightly.bench.semi.results import save_convergence, table

    records = read_records(folder, SemiConfig)
    click.echo(table(records))
    if plot:
        save_convergence(records, plot)
