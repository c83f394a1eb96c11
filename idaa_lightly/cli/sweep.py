"""`idaa-bench sweep`."""

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

SEVERAL = ("method", "aug", "seed", "set")


@click.command()
@click.option("--method", default="simclr", show_default=True, help="Methods, such as simclr,simsiam.")
@click.option("--aug", default="none,random,idaa", show_default=True, help="Augmentations, such as none,clae,idaa.")
@click.option("--seeds", default="0", show_default=True, help="Seeds, such as 0-4 or 0,1,7-9.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUES",
    help="Values to try for an option, such as idaa.eps=0.1,0.2 for one augmentation or method by its name, or "
    "aug.eps=0.1,0.2 for all that have it; those that lack it run once without it, and are named. A name goes before "
    "aug and method. Several --set are combined; a comma always separates values.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs, such as runs/eps; any number of sweeps and machines may share it at the same time.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="At most so many runs at a time, such as 2; on several GPUs each gets one. Runs that share a device slow each "
    "other down, also in the times that `compare` shows. Default: 1 on this machine, all on a cluster.",
)
@click.option(
    "--cluster",
    type=click.Choice(["local", "slurm"]),
    default="local",
    show_default=True,
    help="local: processes of this machine; slurm: a job a run.",
)
@click.option(
    "--slurm",
    multiple=True,
    metavar="KEY=VALUE",
    help="Parameter of submitit's jobs of Slurm, such as partition=gpu, gpus_per_node=1, cpus_per_task=8, mem_gb=32 or "
    "time=MINUTES (default: a day; a job that runs out of it is queued again).",
)
@click.option("--print-jobs", is_flag=True, help="Print a command a line for each run that is to do, and stop.")
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
    """Run every combination of methods, augmentations, options and seeds once; then compare with `compare`.

    May be stopped and given again at any moment: a run in --out with the same configuration, whatever its folder is
    called, is not repeated if it is finished, and resumed if it is not. A run that fails does not stop the others.
    Pairs that do not go together are left out, and named. All other options are those of `idaa-bench run`.

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

    console().stderr = print_jobs  # commands alone go to standard output
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
    terminal.print(f"All are finished: idaa-bench compare {shlex.quote(str(out))}", highlight=False)


def _pair(option: str, item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not (key.strip() and equals and value.strip()):
        raise UsageError(f"{option} got {item!r}, but expected KEY=VALUE")
    return key.strip(), value.strip()


def _names(option: str, text: str) -> list[str]:
    """The parts between the commas, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option} got {text!r}, but expected values with a comma in between")
    return list(dict.fromkeys(parts))


def _seeds(text: str) -> list[int]:
    """0-2,7 to [0, 1, 2, 7]."""
    result: list[int] = []
    for part in _names("--seeds", text):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise UsageError(f"--seeds got {text!r}, but expected numbers and ranges such as 0-4 or 0,1,7-9")
        result += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(result))
