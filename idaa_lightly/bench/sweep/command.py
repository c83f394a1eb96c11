"""The command of a job. Kept apart so that the process of a cluster's job does not import torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import submitit


@dataclass
class Command:
    """A command with its arguments, and variables to add to the environment.

    submitit calls it in a cluster's job. A job that is preempted or out of time is queued again, and resumes.
    """

    arguments: list[str]
    variables: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the process: this one's without Slurm's variables, and `variables`."""
        # Lightning would read Slurm's variables as a layout of processes, and wait for those that submitit never starts
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return kept | self.variables

    def __call__(self) -> int:
        """Run the command and return its exit code."""
        return subprocess.run(self.arguments, env=self.environment, check=False).returncode

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the job to queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
