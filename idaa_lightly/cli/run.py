"""`idaa-bench run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from idaa_lightly.cli.options import config_options, configs
from idaa_lightly.cli.terminal import console

if TYPE_CHECKING:
    from idaa_lightly.bench.record import Record


@click.command()
@config_options()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder. Default: runs/DATA-METHOD-AUG-..., new for each configuration.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same configuration.")
@click.option(
    "--config",
    "config_file",
    metavar="FILE[:RECIPE]",
    help="TOML file with any of these options, such as a run's config.toml, or a recipe of a file of recipes, such as "
    "benchmarks/recipes.toml:laptop-simclr-none. Options of the command line override it.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
def run(out: Path | None, resume: bool, config_file: str | None, dry_run: bool, **given: Any) -> None:
    """Train, evaluate by kNN and a linear probe, and leave a run folder.

    Without options: SimCLR with IDAA on scikit-learn's digits, a small ResNet, about two minutes on two cores.

    The folder holds config.toml (feeding it back repeats the run), record.json, metrics.csv, curves.png, views.png,
    backbone.pt (a plain state dict) and checkpoints/last.ckpt.

    \b
    Examples:
      idaa-bench run --data folder:PATH --backbone resnet18 --epochs 100 --seed 0 --seed 1 --seed 2
      idaa-bench run --aug idaa --set aug.eps=0.1 --set method.temperature=0.2
      idaa-bench run --config runs/OLD/config.toml --seed 7
    """
    asked = configs(given, config_file)
    from idaa_lightly.bench.run.setup import make_augmentation, resolve
    from idaa_lightly.bench.run.train import run as train

    resolved = [resolve(config) for config in asked]
    if dry_run:
        make_augmentation(resolved[0])  # refuses values out of range
        click.echo(resolved[0].to_toml() + f"# seeds: {', '.join(str(config.seed) for config in asked)}")
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
        if record:  # of DDP's processes only the first one has it
            records.append((folder, record))
    if records:
        terminal = console()
        terminal.print(_run_table(records))
        terminal.print(f"Run folder: {base if len(records) > 1 else records[0][0]}", soft_wrap=True, highlight=False)


def _run_table(records: list[tuple[Path, Record]]) -> Table:
    """Return accuracies of runs that differ in their seed, with mean ± standard deviation if there are several."""
    from statistics import mean, stdev

    rows: dict[str, Callable[[Record], float]] = {
        "kNN at init, %": lambda record: 100 * record["initial"]["knn"],
        "kNN, %": lambda record: 100 * record["last"]["knn"],
        "kNN of the best epoch*, %": lambda record: 100 * record["best"]["knn"],
        "linear at init, %": lambda record: 100 * record["initial"]["linear"],
        "linear, %": lambda record: 100 * record["last"]["linear"],
        "training, s": lambda record: record["time"]["train_s"],
        "images/s": lambda record: record["time"]["images_per_s"],
    }
    config = records[0][1]["config"]
    table = Table(
        f"top-1 of {config['method']} × {config['aug']}",
        *(f"seed {record['config']['seed']}" for _, record in records),
        *(["mean ± std"] if len(records) > 1 else []),
        caption="on the test images, after the last epoch; * chosen on them: optimistic",
    )
    for name, value in rows.items():
        values = [value(record) for _, record in records]
        summary = [f"{mean(values):.2f} ± {stdev(values):.2f}"] if len(values) > 1 else []
        table.add_row(name, *(f"{number:.2f}" for number in values), *summary)
    return table
