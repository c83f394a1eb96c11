"""Command `idaa-bench sweep`."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.cli.jobs import job_options, names_in, pair_in, seeds_in, slurm_parameters
from idaa_lightly.cli.options import config_options, configs
from idaa_lightly.cli.terminal import console
from idaa_lightly.errors import UsageError

SEVERAL = ("method", "aug", "seed", "set")


@click.command()
@click.option("--method", default="simclr", show_default=True, help="Methods to run, such as simclr,simsiam.")
@click.option(
    "--aug", default="none,random,idaa", show_default=True, help="Augmentations to run, such as none,clae,idaa."
)
@click.option("--seeds", default="0", show_default=True, help="Seeds to run, such as 0-4 or 0,1,7-9.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUES",
    help="Values to try for an option, separated by commas. aug.KEY and method.KEY, such as aug.eps=0.1,0.2, set the "
    "option of all plugins that have it; plugins without it run once, and a message says so. NAME.KEY, such as "
    "idaa.eps=0.1,0.2, sets the option of one plugin and overrides aug.KEY and method.KEY. Repeat --set to try all "
    "combinations.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Directory for the run directories, such as runs/eps. Several sweeps and machines may share it.",
)
@job_options
@click.option("--print-jobs", is_flag=True, help="Print one command per unfinished run, and run nothing.")
@config_options(*(item.name for item in fields(RunConfig) if item.name not in SEVERAL))
def sweep(
    method: str,
    aug: str,
    seeds: str,
    settings: tuple[str, ...],
    out: Path,
    jobs: int | None,
    cluster: str,
    slurm: tuple[str, ...],
    print_jobs: bool,
    **given: Any,
) -> None:
    """Run every combination of options and seeds once.

    The combinations are those of methods, augmentations, values of their options (--set) and seeds. Pairs of a method
    and an augmentation that do not go together are left out and logged.

    The sweep can be interrupted and repeated at any time. Runs in --out are recognised by their configuration: finished
    ones are skipped, and interrupted ones are resumed. A run that fails does not stop the others.

    The options from --data on are those of `idaa-bench run`. Afterwards, `idaa-bench compare` shows the results.

    \b
    Examples:
      idaa-bench sweep --method simclr,simsiam --aug none,random,idaa --seeds 0-4 --jobs 2
      idaa-bench sweep --aug none,clae,idaa --set aug.eps=0.1,0.2 --set method.temperature=0.2,0.5
      idaa-bench sweep --data cifar10 --cluster slurm --slurm partition=gpu --slurm gpus_per_node=1
      idaa-bench sweep --seeds 0-4 --print-jobs | parallel --jobs 4
    """
    options = slurm_parameters(cluster, slurm, needed=not print_jobs)
    chosen: dict[str, dict[str, list[str]]] = {}
    for item in settings:
        name, values = pair_in("--set", item)
        scope, dot, key = name.partition(".")
        if not (scope and dot and key):
            raise UsageError(f"--set got {item!r}, but expected aug.KEY=VALUES, method.KEY=VALUES or NAME.KEY=VALUES")
        chosen.setdefault(scope, {}).setdefault(key, []).extend(names_in("--set", values))
    for scope, key in (("method", "lr"), ("aug", "vae")):
        if (value := given.pop(key)) is not None:
            chosen.setdefault(scope, {})[key] = [str(value)]
    methods, augs, numbers = names_in("--method", method), names_in("--aug", aug), seeds_in(seeds)
    from idaa_lightly.bench.sweep.plan import plan

    console().stderr = print_jobs  # so that only commands go to standard output
    runs = plan(
        lambda method, aug: configs(given | {"method": method, "aug": aug}, None)[0],
        methods, augs, numbers, chosen, out,
    )  # fmt: skip
    if print_jobs:
        for run in runs:
            if not run.finished:
                click.echo(shlex.join(["idaa-bench", *run.arguments]))
        return
    terminal = console()
    finished = sum(run.finished for run in runs)
    terminal.print(f"{len(runs)} runs in {out}, {finished} of them finished already.", highlight=False)
    if finished < len(runs):
        from idaa_lightly.bench.sweep.jobs import Jobs

        limit = jobs or (1 if cluster == "local" else None)
        Jobs(runs, out, terminal, limit=limit, cluster=cluster, options=options).execute()
    terminal.print(f"All runs are finished. Compare them: idaa-bench compare {shlex.quote(str(out))}", highlight=False)
