"""Attack the command line with kills, damaged files, odd options, records and images, full disks and lost surroundings.

Run `python tests/attack.py --help`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

import click
from attacks.arena import FORKS, PRELOAD, Outcome, Worker
from attacks.files import damaged_files, full_disks, records
from attacks.fixture import make_fixture
from attacks.images import images
from attacks.inputs import options, settings, surroundings
from attacks.kills import kills, sweeps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

KINDS = {
    "fixture": make_fixture,
    "options": options,
    "settings": settings,
    "files": damaged_files,
    "records": records,
    "images": images,
    "disks": full_disks,
    "surroundings": surroundings,
    "kills": kills,
    "sweeps": sweeps,
}
SHARES = {
    "options": 25, "settings": 5, "files": 14, "records": 12, "images": 10, "disks": 5, "surroundings": 2, "kills": 20,
    "sweeps": 4,
}  # fmt: skip
"""Kinds, with weights by which they share the time."""
LIMITS = {"fixture": 600, "surroundings": 180, "kills": 600, "sweeps": 900}
"""Seconds that a case may take. Others may take `LIMIT`. Most take less than one."""
LIMIT = 90
COST = {"kills": 8.0, "sweeps": 60.0, "surroundings": 8.0, "settings": 2.0}
"""Seconds that a case is expected to take, if not one. They are charged to its kind until it has ended."""


def _parsed(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Return kind and number of each case, for Click's `callback`."""
    cases = [(text, *text.rpartition("-")[::2]) for text in texts]
    for text, kind, number in cases:
        if kind not in SHARES or not number.isdecimal():
            raise click.BadParameter(f"{text!r}; expected one of {', '.join(SHARES)} and a number, such as files-17")
    if cases and context.params.get("kinds"):
        raise click.BadParameter("leave --kind out, because each case names its own")
    return tuple((kind, int(number)) for _, kind, number in cases)


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Time to attack for.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all choices.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Cases at a time.")
@click.option(
    "--most", type=click.IntRange(1), help="Largest number of cases of each kind. Default: until the time is over."
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    is_eager=True,  # Read before --case.
    type=click.Choice(list(SHARES)),
    help="Only this kind. Can be repeated.",
)
@click.option(
    "--case",
    "cases",
    multiple=True,
    callback=_parsed,
    metavar="KIND-NUMBER",
    help="Only this case, such as files-17. Can be repeated. The time is not limited.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file for the result.")
def attack(
    minutes: float,
    seed: int,
    jobs: int,
    most: int | None,
    kinds: tuple[str, ...],
    cases: tuple[tuple[str, int], ...],
    out: Path | None,
) -> None:
    """Attack idaa-bench, and print how many attacks of each kind it survived.

    A case is determined by the seed, its kind and its number, apart from the moments of kills. It runs in an empty
    directory and survives if the command ends with a documented exit code, prints one sentence if it fails and no
    traceback, ends in time, writes only where it may, leaves no temporary files, and loses nothing: after a kill or a
    full disk, the repeated command gives the weights and figures of an undisturbed run to the bit.

    \b
    Kinds:
      options       random options, values and arguments of all commands
      settings      an epoch with extreme values of options that are within their types
      files         damaged checkpoints, configurations, logs, weights, features, results, VAEs and their cache
      records       other values in record.json and in results, read by compare and report
      images        damaged, huge or odd image files
      disks         a disk that is full while a command writes
      surroundings  a missing TMPDIR or HOME, an unwritable cache, other locales
      kills         SIGKILL, once or twice, to run, semi, detect, table, finetune, identity, linear and knn
      sweeps        one or two sweeps on one directory, killed with or without their runs

    The exit code is 1 if any attack succeeded. Ctrl-C ends the attack early.

    \b
    Examples:
      python tests/attack.py --minutes 10 --seed 3 --out attack.json
      python tests/attack.py --seed 3 --case kills-5 --case files-17
    """
    # A killed process cannot close its semaphores. Python does so, and would warn of it.
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ["OMP_NUM_THREADS"] = "1"  # so that many processes on few cores stay quick
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # so that fork servers find the modules of the attack
    FORKS.set_forkserver_preload(PRELOAD)
    root = Path(tempfile.mkdtemp(prefix="attack-")).resolve()
    os.environ["MPLCONFIGDIR"] = str(root)
    numbers: dict[str, list[int]] = {}
    for kind, number in cases:
        numbers.setdefault(kind, []).append(number)
    every = range(most or 10**9)
    schedule = Schedule({kind: iter(numbers.get(kind, every)) for kind in numbers or kinds or SHARES})
    console = Console(stderr=True)
    try:
        outcomes = _attacked(root, seed, jobs, inf if cases else 60 * minutes, schedule, console)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    failures = [outcome for outcome in outcomes if outcome.faults]
    Console().print(_table(outcomes))
    if out:
        out.write_text(json.dumps(_result(outcomes, seed, minutes), indent=2) + "\n")
    sys.exit(1 if failures else 0)


@dataclass
class Schedule:
    """Cases still to come, whose kinds share the time.

    Attributes:
        numbers: Numbers of the cases to come, by kind.
        spent: Seconds spent so far, by kind.
    """

    numbers: dict[str, Iterator[int]]
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SHARES, 0.0))

    def next(self) -> tuple[str, int] | None:
        """Return kind and number of the next case, or None if there is none."""
        for kind in sorted(self.numbers, key=lambda kind: self.spent[kind] / SHARES[kind]):
            if (number := next(self.numbers[kind], None)) is not None:
                self.spent[kind] += COST.get(kind, 1.0)
                return kind, number
        return None

    def ended(self, outcome: Outcome) -> None:
        """Replace the expected time of a case by the real one."""
        self.spent[outcome.kind] += outcome.seconds - COST.get(outcome.kind, 1.0)


def _attacked(root: Path, seed: int, jobs: int, seconds: float, schedule: Schedule, console: Console) -> list[Outcome]:
    """Run cases until the time is over or Ctrl-C is pressed, and print failures when they happen."""
    idle = [_fixed(root, seed, console), *(Worker(root, KINDS) for _ in range(jobs - 1))]
    busy: list[Worker] = []
    outcomes: list[Outcome] = []
    end = time.monotonic() + seconds
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress, suppress(KeyboardInterrupt):
        bar = progress.add_task("", total=None)
        while True:
            while idle and time.monotonic() < end and (case := schedule.next()):
                busy.append(idle.pop())
                busy[-1].start(*case, seed, LIMITS.get(case[0], LIMIT))
            if not busy:
                break
            time.sleep(0.002)
            for worker, outcome in [(worker, worker.outcome()) for worker in busy]:
                if outcome is None:
                    continue
                busy.remove(worker)
                idle.append(worker if worker.process.is_alive() else Worker(root, KINDS))
                outcomes.append(outcome)
                schedule.ended(outcome)
                failed = sum(bool(other.faults) for other in outcomes)
                progress.update(bar, completed=len(outcomes), description=f"{failed} of the attacks succeeded")
                if outcome.faults or seconds == inf:
                    _say(console, outcome, seed)
    for worker in (*idle, *busy):
        worker.stop()
    return outcomes


def _fixed(root: Path, seed: int, console: Console) -> Worker:
    """Make the fixture, and return the worker that did."""
    worker = Worker(root, KINDS)
    worker.start("fixture", 0, seed, LIMITS["fixture"])
    while (outcome := worker.outcome()) is None:
        time.sleep(0.05)
    if outcome.faults:
        worker.stop()
        _say(console, outcome, seed)
        raise click.ClickException("the runs to attack cannot be made")
    return worker


def _say(console: Console, outcome: Outcome, seed: int) -> None:
    name = f"{outcome.kind}-{outcome.number}"
    lines = [f"{name}: {outcome.tried} ({outcome.seconds:.1f} s)", *(f"  {fault}" for fault in outcome.faults)]
    if outcome.faults and outcome.kind in SHARES:
        lines.append(f"  again: python tests/attack.py --seed {seed} --case {name}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _counts(outcomes: list[Outcome]) -> dict[str, dict[str, int]]:
    """Return the numbers of cases, of survived ones and of killed processes by kind."""
    found = {}
    for kind in SHARES:
        ours = [outcome for outcome in outcomes if outcome.kind == kind]
        if ours:
            survived = sum(not outcome.faults for outcome in ours)
            found[kind] = {"tried": len(ours), "survived": survived, "killed": sum(outcome.kills for outcome in ours)}
    return found


def _table(outcomes: list[Outcome]) -> Table:
    table = Table("kind", "tried", "survived", "processes killed")
    counts = _counts(outcomes)
    for kind, numbers in counts.items():
        table.add_row(kind, *map(str, numbers.values()))
    table.add_section()
    table.add_row(
        "all", *(str(sum(part[name] for part in counts.values())) for name in ("tried", "survived", "killed"))
    )
    return table


def _result(outcomes: list[Outcome], seed: int, minutes: float) -> dict[str, Any]:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    packages = ("idaa-lightly", "torch", "pytorch-lightning", "lightly", "numpy", "pillow", "click")
    return {
        "seed": seed,
        "minutes": minutes,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit or None,
        "machine": f"{platform.system()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "kinds": _counts(outcomes),
        "failures": [
            {"case": f"{outcome.kind}-{outcome.number}", "tried": outcome.tried, "faults": outcome.faults}
            for outcome in sorted(outcomes, key=lambda outcome: (outcome.kind, outcome.number))
            if outcome.faults
        ],
    }


if __name__ == "__main__":
    attack()
