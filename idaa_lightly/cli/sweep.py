"""Command `idaa-bench sweep`."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.cli.options import config_options, configs
from idaa_lightly.cli.terminal import console
from idaa_lightly.errors import UsageError, require_extra

MOST = 10_000
"""Largest number of seeds in a range."""
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
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Largest number of runs at a time. With several GPUs, each run gets one. Runs that share a device slow each "
    "other down, which also distorts the times in `idaa-bench compare`. Default: 1 locally, all on a cluster.",
)
@click.option(
    "--cluster",
    type=click.Choice(["local", "slurm"]),
    default="local",
    show_default=True,
    help="Where to run. local: processes on this machine. slurm: one Slurm job per run.",
)
@click.option(
    "--slurm",
    multiple=True,
    metavar="KEY=VALUE",
    help="Parameter of submitit's Slurm jobs, such as partition=gpu, gpus_per_node=1, cpus_per_task=8, mem_gb=32 or "
    "time=MINUTES. Can be repeated. The default time is one day. A job that is preempted or runs out of time is "
    "queued again and resumes.",
)
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
    if slurm and cluster != "slurm":
        raise UsageError(f"--slurm is {slurm[0]!r}, but --cluster is {cluster}: add --cluster slurm")
    if cluster == "slurm" and not print_jobs:
        require_extra("submitit", "slurm", "--cluster slurm")
    chosen: dict[str, dict[str, list[str]]] = {}
    for item in settings:
        name, values = _pair("--set", item)
        scope, dot, key = name.partition(".")
        if not (scope and dot and key):
            raise UsageError(f"--set got {item!r}, but expected aug.KEY=VALUES, method.KEY=VALUES or NAME.KEY=VALUES")
        chosen.setdefault(scope, {}).setdefault(key, []).extend(_names("--set", values))
    for scope, key in (("method", "lr"), ("aug", "vae")):
        if (value := given.pop(key)) is not None:
            chosen.setdefault(scope, {})[key] = [str(value)]
    options = {key: int(text) if text.isdigit() else text for key, text in (_pair("--slurm", item) for item in slurm)}
    methods, augs, numbers = _names("--method", method), _names("--aug", aug), _seeds(seeds)
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


def _pair(option: str, item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not (key.strip() and equals and value.strip()):
        raise UsageError(f"{option} got {item!r}, but expected KEY=VALUE")
    return key.strip(), value.strip()


def _names(option: str, text: str) -> list[str]:
    """Return the parts between commas, without repeats."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option} got {text!r}, but expected values separated by commas")
    return list(dict.fromkeys(parts))


def _seeds(text: str) -> list[int]:
    """Parse seeds: "0-2,7" becomes [0, 1, 2, 7]."""
    result: list[int] = []
    for part in _names("--seeds", text):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and not 0 <= int(last) - int(first) < MOST):
            raise UsageError(
                f"--seeds got {text!r}, but expected numbers and ranges such as 0-4 or 0,1,7-9, of up to {MOST} seeds"
            )
        result += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(result))
