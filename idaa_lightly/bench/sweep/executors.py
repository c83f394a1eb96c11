"""Executors that run commands as local processes, or as cluster jobs through submitit."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from idaa_lightly.bench.sweep.command import Command
from idaa_lightly.errors import UsageError, require_extra

if TYPE_CHECKING:
    import submitit

DAY = 60 * 24
"""Default time limit of a cluster job, in minutes. The default of submitit is 5."""


class Job(Protocol):
    """A submitted command.

    Attributes:
        name: Name of the job in messages.
        log: File that the command's stderr is written to.
    """

    name: str
    log: Path

    def done(self) -> bool:
        """Return whether the command has ended."""

    def exit_code(self) -> int | None:
        """Return the exit code of a command that has ended. It is None or negative if the command was killed."""

    def cancel(self) -> None:
        """Interrupt the command, which then prints how to continue."""


Submit = Callable[[Command], Job]


class LocalJob:
    """Command as a process on this machine. It goes on running if the sweep is killed.

    Args:
        command: Command to run.
        folder: Directory for its output.
        number: Number of the job, which names its output files.
    """

    def __init__(self, command: Command, folder: Path, number: int) -> None:
        self.name, self.log = str(number), folder / f"{number}_log.err"
        with (folder / f"{number}_log.out").open("wb") as out, self.log.open("wb") as err:
            self.process = subprocess.Popen(
                command.arguments, env=command.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def done(self) -> bool:
        """Return whether the process has ended."""
        return self.process.poll() is not None

    def exit_code(self) -> int | None:
        """Return the exit code, or the negative number of the signal that killed the process. None if it still runs."""
        return self.process.poll()

    def cancel(self) -> None:
        """Send SIGTERM to the process. It would ignore SIGINT if the sweep was started in the background."""
        self.process.terminate()


class ClusterJob:
    """Command as a job that submitit has submitted."""

    def __init__(self, job: submitit.Job[int]) -> None:
        self.job, self.name, self.log = job, job.job_id, job.paths.stderr

    def done(self) -> bool:
        """Return whether the cluster has ended the job."""
        return self.job.done()

    def exit_code(self) -> int | None:
        """Return the exit code. None if the job was killed."""
        from submitit.core.utils import UncompletedJobError

        try:
            return self.job.result()
        except UncompletedJobError:
            return None

    def cancel(self) -> None:
        """Remove the job from the queue, or stop it."""
        self.job.cancel()


def create_executor(folder: Path, cluster: str, options: Mapping[str, Any]) -> Submit:
    """Create a function that submits commands.

    Args:
        folder: Directory for the files of the jobs. Several sweeps and machines may share it.
        cluster: "local" or "slurm".
        options: Parameters of submitit's Slurm executor, such as partition.

    Returns:
        A function that submits a command and returns its job.

    Raises:
        UsageError: The cluster is not available here, or an option is wrong.
        MissingExtraError: The cluster needs submitit, which is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=folder))  # Every sweep gets a directory, since job numbers repeat between sweeps.
    if cluster == "local":
        numbers = itertools.count(1)
        return lambda command: LocalJob(command, own, next(numbers))
    submitit = require_extra("submitit", "slurm", f"--cluster {cluster}")
    try:
        executor = submitit.AutoExecutor(own, cluster=cluster)
        executor.update_parameters(slurm_time=DAY, **{f"slurm_{key}": value for key, value in options.items()})
    except (RuntimeError, NameError, AssertionError, ValueError) as error:
        raise UsageError(f"--cluster {cluster} cannot be used: {error}") from error
    return lambda command: ClusterJob(executor.submit(command))
