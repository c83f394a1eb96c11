"""Command `idaa-bench run`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from idaa_lightly.cli.launch import shown, supervised
from idaa_lightly.cli.options import config_options, configs
from idaa_lightly.cli.terminal import console

if TYPE_CHECKING:
    from idaa_lightly.bench.schema import Record


@click.command()
@config_options()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory to write. With several seeds, it gets one subdirectory per seed. Default: a directory in runs/ "
    "named by data, method, augmentation, a hash of the configuration and the seed.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Resume an interrupted run of the same configuration. With another --epochs, go on to that number, if the "
    "finished epochs would have been trained in the same way: with a learning rate that does not depend on it, for "
    "example.",
)
@click.option(
    "--config",
    "config_file",
    metavar="FILE[:RECIPE]",
    help="TOML file that sets any of these options, such as a run's config.toml, or a recipe in a file of recipes, "
    "such as benchmarks/recipes.toml:laptop-simclr-none. The command line overrides it.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration, and train nothing.")
def run(out: Path | None, resume: bool, config_file: str | None, dry_run: bool, **given: Any) -> None:
    """Train and evaluate a model.

    The evaluation is by kNN and a linear probe. The results are written to a run directory.

    Without options, this trains SimCLR with IDAA and a small ResNet on scikit-learn's digits. That takes about a
    minute on two cores.

    \b
    Files of a run directory:
      config.toml                 resolved configuration; pass it to --config to repeat the run
      record.json                 accuracies, cost, data, versions and device
      metrics.csv                 losses and accuracies during training
      curves.png, views.png       learning curves, and views of some images
      backbone.pt                 state dict of the backbone
      checkpoints/last.ckpt       checkpoint for --resume
      checkpoints/previous.ckpt   the one before, used if last.ckpt is missing or damaged
      checkpoints/epoch-00010.ckpt, ...                   with --save-every 10
      record-15-epochs.json, backbone-15-epochs.pt        results of 15 epochs, if the run went on to more of them

    \b
    Examples:
      idaa-bench run --data folder:PATH --backbone resnet18 --epochs 100 --seed 0 --seed 1 --seed 2
      idaa-bench run --aug idaa --set aug.eps=0.1 --set method.temperature=0.2
      idaa-bench run --config runs/OLD/config.toml --seed 7
      idaa-bench run --config runs/OLD/config.toml --epochs 200 --out runs/OLD --resume
    """
    asked = configs(given, config_file)
    from idaa_lightly.bench.run.plugins import rehearse
    from idaa_lightly.bench.run.setup import resolve
    from idaa_lightly.bench.run.train import run as train

    resolved = [resolve(config) for config in asked]
    if dry_run:
        rehearse(resolved[0])
        shown(resolved)
        return
    if supervised(resolved[0]):
        return
    first = resolved[0]
    slug = f"{first.data.split(':')[0]}-{first.method}-{first.aug}-{first.key()}"
    base = out or Path("runs") / slug
    records = []
    for config in resolved:
        folder = base / f"seed-{config.seed}" if len(resolved) > 1 else base
        if out is None and len(resolved) == 1:
            folder = base.with_name(f"{slug}-seed{config.seed}")
        record = train(config, folder, resume=resume)
        if record:  # With DDP, only the first process gets the record.
            records.append((folder, record))
    if records:
        terminal = console()
        terminal.print(_run_table(records))
        place = base if len(records) > 1 else records[0][0]
        terminal.print(f"Run directory: {place}", soft_wrap=True, highlight=False)


def _run_table(records: list[tuple[Path, Record]]) -> Table:
    """Return a table of runs that differ only in their seed, with mean ± standard deviation if there are several."""
    from statistics import mean, stdev

    labelled = "knn" in records[0][1]["last"]
    accuracies: dict[str, Callable[[Record], float]] = {
        "kNN at init, %": lambda record: 100 * record["initial"]["knn"],
        "kNN, %": lambda record: 100 * record["last"]["knn"],
        "kNN of the best epoch*, %": lambda record: 100 * record["best"]["knn"],
        "linear at init, %": lambda record: 100 * record["initial"]["linear"],
        "linear, %": lambda record: 100 * record["last"]["linear"],
    }
    rows = (accuracies if labelled else {}) | {
        "RankMe at init": lambda record: record["initial"].get("rankme", math.nan),
        "RankMe": lambda record: record["last"].get("rankme", math.nan),
        "uniformity": lambda record: record["last"].get("uniformity", math.nan),
        "alignment": lambda record: record["last"].get("alignment", math.nan),
        "spread of embeddings": lambda record: record["last"].get("embedding_spread", math.nan),
        "training, s": lambda record: record["time"]["train_s"],
        "images/s": lambda record: record["time"]["images_per_s"],
    }
    config = records[0][1]["config"]
    table = Table(
        f"{'top-1 of ' * labelled}{config['method']} × {config['aug']}",
        *(f"seed {record['config']['seed']}" for _, record in records),
        *(["mean ± std"] if len(records) > 1 else []),
        caption="after the last epoch"
        + f"; accuracies on the {config.get('evaluate_on', 'test')} images, * on the validation images" * labelled
        + "; RankMe to spread need no labels",
    )
    for name, value in rows.items():
        values = [value(record) for _, record in records]
        summary = [f"{mean(values):.2f} ± {stdev(values):.2f}"] if len(values) > 1 else []
        table.add_row(name, *(f"{number:.2f}" for number in values), *summary)
    warnings = [len(record.get("warnings", [])) for _, record in records]
    if any(warnings):
        table.add_row("warnings, see above", *map(str, warnings))
    return table
