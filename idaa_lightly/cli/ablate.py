"""Command `idaa-bench ablate`."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from idaa_lightly.bench.ablate import METRICS
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.cli.jobs import job_options, names_in, pair_in, seeds_in, slurm_parameters
from idaa_lightly.cli.options import config_options, configs
from idaa_lightly.cli.terminal import console
from idaa_lightly.errors import UsageError

if TYPE_CHECKING:
    from idaa_lightly.bench.ablate.schema import Ablation

SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@click.command()
@config_options(*(item.name for item in fields(RunConfig) if item.name != "seed"))
@click.option(
    "--config",
    "config_file",
    metavar="FILE[:RECIPE]",
    help="TOML file that sets any of the options above, as for `idaa-bench run`.",
)
@click.option("--seeds", default="0-4", show_default=True, help="Seeds, such as 0-4. A verdict needs 5 or more.")
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    help="Metric that decides, after the last epoch. Default: knn, or rankme without labels.",
)
@click.option(
    "--tune",
    multiple=True,
    metavar="method.KEY=VALUES",
    help="Values to try for an option of the method, separated by commas. Can be repeated, to try all combinations. "
    "Every row gets all trials, on the validation images with the first seed, and its final runs take the best.",
)
@click.option(
    "--budget",
    metavar="TIME",
    help="Time for the remaining runs, such as 90min or 2h. Runs as many whole rounds of seeds as are estimated to "
    "fit. A round is one seed of every row.",
)
@job_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory for runs and results. Default: runs/ablate-METHOD-AUG.",
)
@click.option(
    "--dry-run", is_flag=True, help="Write the rows' configurations to OUT/rows, before any tuning, and train nothing."
)
def ablate(
    config_file: str | None,
    seeds: str,
    metric: Any,
    tune: tuple[str, ...],
    budget: str | None,
    jobs: int | None,
    cluster: str,
    slurm: tuple[str, ...],
    out: Path | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Find out whether an augmentation helps, and which part of it.

    The augmentation is run with everything that it has to be compared with. For an adversarial third view that is: the
    method alone; the method alone for as many operations, with those of fitting a VAE; a third ordinary view; the
    unperturbed view; a random direction; and the search with one BatchNorm. Third views pass through the first (clean)
    BatchNorm or the second (adversarial) one. Other augmentations declare their own controls.

    Three differences are judged: to the method alone at equal epochs, to the strongest control, and to the method alone
    at equal compute. Their 95 % intervals hold simultaneously. All else in the table is descriptive.

    Test images are read before the first and after the last epoch only. Nothing is chosen on them except the strongest
    control.

    \b
    Files of OUT:
      ablation.md, ablation.json      the verdict, the table and the trials
      contrasts.svg, contrasts.png    forest plot of the three differences
      waterfall.svg, waterfall.png    what each step from the method alone to the augmentation adds
      rows/                           configuration of each row, for `idaa-bench run --config`
      DATA-METHOD-AUG-.../seed-N      run directories

    The command can be interrupted and repeated, also with more seeds. Finished runs are kept.

    \b
    Examples:
      idaa-bench ablate --method simclr --aug idaa
      idaa-bench ablate --aug clae --tune method.temperature=0.1,0.2,0.5 --tune method.lr=1e-3,3e-3 --budget 2h
      idaa-bench ablate --plugin my_views.py --aug my-views --data cifar10 --cluster slurm --slurm partition=gpu
    """
    parameters = slurm_parameters(cluster, slurm)
    config, numbers, tried = configs(given, config_file, several=False)[0], seeds_in(seeds), _tuned(tune, given)
    seconds = _seconds(budget) if budget else None
    from idaa_lightly.bench.ablate.pictures import write_ablation
    from idaa_lightly.bench.ablate.rows import rows_of
    from idaa_lightly.bench.ablate.study import ablate as study
    from idaa_lightly.bench.ablate.study import write_rows
    from idaa_lightly.bench.sweep.jobs import Jobs
    from idaa_lightly.bench.sweep.plan import Run

    out = out or Path("runs") / f"ablate-{config.method}-{config.aug}"
    if dry_run:
        click.echo("\n".join(map(str, write_rows(rows_of(config)[0], out / "rows"))))
        return
    if seconds is not None:
        from idaa_lightly.bench.ablate.budget import rounds_within

        numbers = numbers[: rounds_within(seconds, config, out, numbers, tried, jobs or 1, metric)]
    terminal, limit = console(), jobs or (1 if cluster == "local" else None)

    def execute(runs: list[Run]) -> None:
        waiting = [run for run in dict.fromkeys(runs) if not run.finished]
        if waiting:
            Jobs(waiting, out, terminal, limit=limit, cluster=cluster, options=parameters).execute()

    result = study(config, out, execute, seeds=numbers, metric=metric, tune=tried)
    written = write_ablation(result, out)
    _show(result)
    terminal.print(f"Written: {shlex.join(map(str, written))}", soft_wrap=True, highlight=False)


def _show(result: Ablation) -> None:
    """Print tables and verdict."""
    from rich.table import Table

    from idaa_lightly.bench.ablate.pictures import cells, trial_cells

    tables = [("Descriptive; only the differences below are judged", cells(result, brief=True))]
    if result["trials"]:
        tables.insert(0, ("Trials on the validation images, * chosen", trial_cells(result)))
    for caption, (header, lines) in tables:
        table = Table(caption=caption)
        for name in header:
            table.add_column(name, no_wrap=name != "row")
        for line in lines:
            table.add_row(*line)
        console().print(table)
    for text in (*result["notes"], result["verdict"]):
        click.echo(text)


def _tuned(items: tuple[str, ...], given: dict[str, Any]) -> dict[str, list[str]]:
    """Parse values of --tune: ("method.lr=0.1,0.2",) becomes {"lr": ["0.1", "0.2"]}."""
    tried: dict[str, list[str]] = {}
    for item in items:
        name, values = pair_in("--tune", item)
        scope, _, key = name.partition(".")
        if scope != "method" or not key:
            raise UsageError(
                f"--tune got {item!r}, but expected method.KEY=VALUES: an option of the augmentation would give it "
                "more trials than the method alone. Choose that before, by `idaa-bench sweep --evaluate-on validation`"
            )
        tried.setdefault(key, []).extend(names_in("--tune", values))
    if "lr" in tried and given.get("lr") is not None:
        raise UsageError("--lr and --tune method.lr exclude each other: leave --lr out")
    return tried


def _seconds(text: str) -> float:
    """Parse a time such as 90min or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\w+)", text.strip())
    if not found or found[2] not in SECONDS or not float(found[1]):
        raise UsageError(f"--budget is {text!r}, but expected a time such as 90min, 2h or 1d")
    return float(found[1]) * SECONDS[found[2]]
