"""What submitit runs; apart from the rest, so that the process around a run imports no torch of its own."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

import submitit


@dataclass
class Command:
    """A command as submitit's job; one that is preempted or out of time is queued again, and resumes."""

    arguments: list[str]
    environment: dict[str, str]

    def __call__(self) -> int:
        """Its exit code."""
        # Lightning would read Slurm's variables as a layout of processes, and wait for those that submitit never starts
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return subprocess.run(self.arguments, env=kept | self.environment, check=False).returncode

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The job that is queued again."""
        return submitit.helpers.DelayedSubmission(self)
