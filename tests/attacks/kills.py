"""Cases that kill commands at random moments, once or twice, and compare what is there in the end."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from random import Random

from attacks.arena import Case, Command, leftover
from attacks.fixture import CLAE, DETECT, EVALUATIONS, IDAA, NONE, RECIPES, RESULTS, SEMI, TABLES, difference, figures

USUAL = {"run": NONE, "clae": CLAE, "idaa": IDAA, "semi": SEMI, "detect": DETECT}
DURATIONS = {
    "run": 1.0,
    "clae": 1.2,
    "idaa": 1.5,
    "semi": 1.5,
    "detect": 2.0,
    "knn": 0.3,
    "linear": 0.4,
    "finetune": 0.7,
    "identity": 1.0,
    "table": 2.0,
}
"""Usual durations, in units of a run's. A moment is drawn within them."""
SWEEP = ["sweep", *NONE[1:], "--seeds", "0-1", "--out", "all", "--jobs", "2"]
TABLE = ["table", "small", "--folder", "tables", "--out", "runs"]


def kills(case: Case) -> None:
    """Kill a command once or twice, repeat it, and expect the result of an undisturbed one."""
    names = list(DURATIONS)
    name = names[case.outcome.number % len(names)]
    case.take("images")
    case.take("objects")
    command = USUAL[name] + ["--out", "out", "--resume"] if name in USUAL else EVALUATIONS.get(name, TABLE)
    if name in EVALUATIONS:
        case.take("whole", "finished")
    Path("tables").mkdir()
    Path("tables/recipes.toml").write_text(RECIPES)
    Path("tables/tables.toml").write_text(TABLES)
    seconds = float((case.fixture / "seconds").read_text())
    moments = []
    for _ in range(case.random.choice([1, 2, 2])):
        process = Command(command, Path("log"))
        moments.append(_wait(case.random, process, seconds * DURATIONS[name]))
        case.outcome.kills += process.kill()
    case.outcome.tried = f"{name}, killed {' and '.join(moments)}"
    fault = Command(command, Path("log")).end()
    case.expect(fault is None, fault or "")
    if fault is None:
        _expect_usual(case, name)
    left = [path for path in case.place.rglob("*") if leftover(path)]
    case.expect(not left, f"left {left[:3]} behind")


def _wait(random: Random, process: Command, seconds: float) -> str:
    """Wait for a random time, or for a random change of the files below the working directory."""
    if random.randrange(2):
        delay = random.uniform(0, 1.2 * seconds)
        process.process.join(delay)
        return f"after {delay:.2f} s"
    changes, wanted, before, until = 0, random.randint(1, 30), _state(), time.monotonic() + 60
    while process.process.is_alive() and changes < wanted and time.monotonic() < until:
        now = _state()
        changes += now != before
        before = now
    return f"at change {wanted} of its files"


def _state() -> list[tuple[str, int, int]]:
    """Return name, size and time of each file below the directories that commands write to."""
    found, folders = [], [Path(name) for name in ("out", "finished", "runs", "all", "tables", "../cache")]
    for folder in folders:
        try:
            for entry in os.scandir(folder):
                status = entry.stat(follow_symlinks=False)
                found.append((entry.path, status.st_size, status.st_mtime_ns))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
        except OSError:  # Files come and go.
            continue
    return sorted(found)


def _expect_usual(case: Case, name: str) -> None:
    if name in USUAL:
        changed = difference(case.fixture / ("whole" if name == "run" else name), Path("out"))
        case.expect(changed is None, f"{changed} in the end")
    elif name == "table":
        for seed, usual in enumerate(("whole", "other")):
            changed = difference(case.fixture / usual, Path(f"runs/small/seed-{seed}"))
            case.expect(changed is None, f"{changed} of seed {seed} in the end")
            kept = Path(f"tables/records/small/seed-{seed}/record.json")
            case.expect(figures(kept) == figures(case.fixture / usual / "record.json"), f"another record in {kept}")
    else:
        result = Path("finished", RESULTS[name])
        case.expect(figures(result) == figures(case.fixture / result), f"another result in {result}")
        for path in (case.fixture / "whole").rglob("*"):
            there = Path("finished", path.relative_to(case.fixture / "whole"))
            case.expect(path.is_dir() or there.read_bytes() == path.read_bytes(), f"changed {there}")


def sweeps(case: Case) -> None:
    """Start one or two sweeps on one directory, kill some of them with or without their runs, and repeat."""
    random = case.random
    case.take("images")
    words = []
    for turn in range(random.choice([1, 2])):
        processes = [Command(SWEEP, Path(f"log{turn}{index}")) for index in range(random.choice([1, 2]))]
        delay = random.uniform(3, 14)
        time.sleep(delay)
        for process in processes:
            group = bool(random.randrange(2))
            case.outcome.kills += process.kill(group=group)
            words.append(f"{'with' if group else 'without'} its runs after {delay:.1f} s")
    both = [Command(SWEEP, Path(f"last{index}")) for index in range(random.choice([1, 2]))]
    case.outcome.tried = f"sweeps killed {', '.join(words)}; then {len(both)} to the end"
    for process in both:
        fault = process.end(240)
        case.expect(fault is None, fault or "")
    runs = sorted(path.parent for path in Path("all").rglob("config.toml"))
    case.expect(len(runs) == 2, f"{len(runs)} runs instead of 2")
    for run, usual in zip(runs, ("whole", "other"), strict=False):
        changed = difference(case.fixture / usual, run) if (run / "record.json").exists() else "no record"
        case.expect(changed is None, f"{changed} in {run}")
    left = [path for path in Path().rglob("*") if leftover(path)]
    case.expect(not left, f"left {left[:3]} behind")
    shutil.rmtree("all", ignore_errors=True)
