"""Execution of a sweep's runs as jobs, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from idaa_lightly.bench.record import read_record
from idaa_lightly.bench.sweep.command import Command
from idaa_lightly.bench.sweep.executors import Job, create_executor
from idaa_lightly.bench.sweep.plan import Run
from idaa_lightly.errors import BusyError, SweepError
from idaa_lightly.files import claim, clear_leftovers

log = logging.getLogger(__name__)
POLL = 0.5  # seconds
PREEMPTED = {128 + getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)}
"""Exit codes of a run that a cluster has ended by a signal."""
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class Jobs:
    """Jobs of a sweep, at most `limit` at a time.

    A run that another process is working on is waited for. It is started here if that process ends without a record.

    Args:
        runs: Runs of the sweep. Finished ones are skipped.
        out: Directory of the sweep. The output of the jobs and submitit's files go to its subdirectory .jobs.
        console: Console that the progress bar is drawn on.
        limit: Number of jobs at a time. None starts all at once.
        cluster: "local" or "slurm".
        options: Parameters of submitit's Slurm executor, such as partition.

    Raises:
        UsageError: The cluster is not available here, or an option is wrong.
        MissingExtraError: The cluster needs submitit, which is not installed.
    """

    def __init__(
        self,
        runs: list[Run],
        out: Path,
        console: Console,
        *,
        limit: int | None,
        cluster: str,
        options: Mapping[str, Any],
    ) -> None:
        for run in runs:
            clear_leftovers(run.folder)  # Finished runs are not started again, so nothing else would clear them.
        self.runs, self.local, self.limit = runs, cluster == "local", limit or len(runs)
        self.waiting = [run for run in runs if not run.finished]
        self.running: dict[int, tuple[Run, Job]] = {}
        self.failed: list[Run] = []
        self.submit = create_executor(out / ".jobs", cluster, options)
        self.gpus = _gpus() if self.local else []
        self.progress = Progress(*COLUMNS, console=console, disable=not console.is_terminal)
        self.bar = self.progress.add_task("", total=len(runs))

    def execute(self) -> None:
        """Execute the runs, and return when all are finished. An interruption also stops the local jobs.

        Raises:
            SweepError: Some runs failed. It is raised after all others have ended.
        """
        with self.progress:
            try:
                while self.waiting or self.running:
                    self._settle()
                    self._start()
                    time.sleep(POLL)
            finally:
                if self.local:
                    for _, job in self.running.values():
                        job.cancel()
        if self.failed:
            names = "; ".join(run.name for run in self.failed)
            raise SweepError(
                f"{len(self.failed)} of {len(self.runs)} runs failed: {names}. Repeat the command to try them again"
            )

    def _settle(self) -> None:
        for slot, (run, job) in list(self.running.items()):
            if not job.done():
                continue
            del self.running[slot]
            if run.finished:
                self._say(run, _result(run))
            elif job.exit_code() == BusyError.exit_code:
                self.waiting.append(run)
                self._say(run, "is being run by another process")
            elif not self.local and job.exit_code() in PREEMPTED:
                self.waiting.append(run)
                self._say(run, "was preempted, and is queued again to resume")
            else:
                self.failed.append(run)
                self._say(run, f"failed: {_last_line(job.log)}; see {job.log}")

    def _start(self) -> None:
        for run in list(self.waiting):
            if run.finished:
                self.waiting.remove(run)
                self._say(run, f"{_result(run)}, by another process")
            elif len(self.running) < self.limit and not _busy(run.folder):
                slot = min(set(range(self.limit)) - self.running.keys())
                command = [sys.executable, "-m", "idaa_lightly.cli", *run.arguments]
                self.waiting.remove(run)
                self.running[slot] = run, self.submit(Command(command, self._environment(run, slot)))
                self._say(run, f"started as job {self.running[slot][1].name}")

    def _environment(self, run: Run, slot: int) -> dict[str, str]:
        """Return the variables that assign GPUs: one GPU per slot in turn, or all GPUs for a run with --devices."""
        if not self.gpus:
            return {}
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(self.gpus)
            if "--devices" in run.options
            else self.gpus[slot % len(self.gpus)]
        }

    def _say(self, run: Run, text: str) -> None:
        done = len(self.runs) - len(self.waiting) - len(self.running)
        state = f"{len(self.running)} running, {len(self.waiting)} to come, {len(self.failed)} failed"
        self.progress.update(self.bar, completed=done, description=state)
        log.info(f"[{done}/{len(self.runs)}] {run.name}: {text}")


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def _busy(folder: Path) -> bool:
    try:
        with claim(folder, timeout=0):
            return False
    except BusyError:
        return True


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("Error: ") if lines else "it was stopped without a message"


def _result(run: Run) -> str:
    last = read_record(run.folder)["last"]
    return (
        f"finished, kNN {100 * last['knn']:.2f} %" if "knn" in last else f"finished, RankMe {last.get('rankme', 0):.1f}"
    )
