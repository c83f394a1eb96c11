"""Command of a job, in a module of its own so that a cluster job can load it without importing torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import submitit


@dataclass
class Command:
    """Command that a job runs. submitit calls it in a cluster job.

    A job that is preempted or runs out of time is queued again. Its command then resumes the run.

    Attributes:
        arguments: The program and its arguments.
        variables: Environment variables to add.
    """

    arguments: list[str]
    variables: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the command: that of this process without Slurm's variables, and `variables`."""
        # Lightning would infer a process layout from Slurm's variables, and wait for processes that nothing starts.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return kept | self.variables

    def __call__(self) -> int:
        """Run the command and return its exit code."""
        return subprocess.run(self.arguments, env=self.environment, check=False).returncode

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the job to queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
