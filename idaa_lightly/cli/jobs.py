"""Command-line options of commands that execute many runs."""

from __future__ import annotations

from typing import Any

import click

from idaa_lightly.errors import UsageError, require_extra

MOST = 10_000
"""Largest number of seeds in a range."""


def job_options(command: Any) -> Any:
    """Add the options --jobs, --cluster and --slurm to a Click command."""
    for option in (
        click.option(
            "--slurm",
            multiple=True,
            metavar="KEY=VALUE",
            help="Parameter of submitit's Slurm jobs, such as partition=gpu, gpus_per_node=1, cpus_per_task=8, "
            "mem_gb=32 or time=MINUTES. Can be repeated. The default time is one day. A job that is preempted or runs "
            "out of time is queued again and resumes.",
        ),
        click.option(
            "--cluster",
            type=click.Choice(["local", "slurm"]),
            default="local",
            show_default=True,
            help="Where to run. local: processes on this machine. slurm: one Slurm job per run.",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(min=1),
            help="Largest number of runs at a time. With several GPUs, each run gets one. Runs that share a device "
            "slow each other down, which also distorts the times in `idaa-bench compare`. Default: 1 locally, all on a "
            "cluster.",
        ),
    ):
        command = option(command)
    return command


def slurm_parameters(cluster: str, items: tuple[str, ...], *, needed: bool = True) -> dict[str, Any]:
    """Parse values of --slurm.

    Args:
        cluster: Value of --cluster.
        items: Values of --slurm.
        needed: True if jobs will be submitted.

    Raises:
        UsageError: A value has another form, or --cluster is not slurm.
        MissingExtraError: submitit is needed, but not installed.
    """
    if items and cluster != "slurm":
        raise UsageError(f"--slurm is {items[0]!r}, but --cluster is {cluster}: add --cluster slurm")
    if cluster == "slurm" and needed:
        require_extra("submitit", "slurm", "--cluster slurm")
    pairs = (pair_in("--slurm", item) for item in items)
    return {key: int(text) if text.isdigit() else text for key, text in pairs}


def pair_in(option: str, item: str) -> tuple[str, str]:
    """Parse KEY=VALUE.

    Args:
        option: Name of the option, for the message.
        item: Its value.

    Raises:
        UsageError: The value has another form.
    """
    key, equals, value = item.partition("=")
    if not (key.strip() and equals and value.strip()):
        raise UsageError(f"{option} got {item!r}, but expected KEY=VALUE")
    return key.strip(), value.strip()


def names_in(option: str, text: str) -> list[str]:
    """Return the parts between commas, without repeats.

    Args:
        option: Name of the option, for the message.
        text: Its value.

    Raises:
        UsageError: A part is empty.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option} got {text!r}, but expected values separated by commas")
    return list(dict.fromkeys(parts))


def seeds_in(text: str) -> list[int]:
    """Parse the value of --seeds: "0-2,7" becomes [0, 1, 2, 7].

    Raises:
        UsageError: The value has another form, or a range is too long.
    """
    result: list[int] = []
    for part in names_in("--seeds", text):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and not 0 <= int(last) - int(first) < MOST):
            raise UsageError(
                f"--seeds got {text!r}, but expected numbers and ranges such as 0-4 or 0,1,7-9, of up to {MOST} seeds"
            )
        result += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(result))
