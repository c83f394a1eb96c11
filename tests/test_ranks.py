"""Ranks of a run on several devices that die: one sentence says which and how, and no process is left.

tests/test_supervise.py has the other ways in which ranks can end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

RUN = ["run", "--aug", "none", "--data", "folder:images", "--backbone", "resnet9-w2", "--batch-size", "12"]
RUN += ["--epochs", "300", "--accelerator", "cpu", "--devices", "2", "--out", "run"]
HINT = "repeat the command with --resume to continue after the last finished epoch"
PATIENCE = 180
"""Seconds until a process counts as left behind. It takes a few, but the machine may be busy."""
BROKEN = """
import os
if os.environ.get("LOCAL_RANK") == "1":
    from idaa_lightly.errors import DataError
    from idaa_lightly.training import SelfSupervised
    def broken(module):
        raise DataError("broken here")
    SelfSupervised.on_train_epoch_end = broken
"""


@pytest.fixture(autouse=True)
def images(folder: Path, own_place: None) -> None:
    Path("images").symlink_to(folder)


@contextmanager
def started(*options: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start the run in a session of its own. Its output goes to the files `out` and `errors`."""
    with (
        Path("out").open("w") as out,
        Path("errors").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "idaa_lightly.cli", *RUN, *options],
            stdout=out,
            stderr=errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    while process.poll() is None and not ready():
        time.sleep(0.05)
    assert process.poll() is None, Path("errors").read_text()


def trains() -> bool:
    return Path("run/checkpoints/last.ckpt").exists()


def alive(session: int) -> dict[int, str]:
    """Return the processes of a session, each with its rank or an empty string."""
    found = {}
    for place in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            state, _, _, its_session = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                variables = (place / "environ").read_bytes().split(b"\0")
                ranks = [value.decode()[11:] for value in variables if value.startswith(b"LOCAL_RANK=")]
                found[int(place.name)] = "".join(ranks)
    return found


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Check that nothing is left. Return the exit code, and what was written to stderr apart from Lightning's notes."""
    code = process.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while (left := alive(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    lines = Path("errors").read_text().splitlines()
    return code, [line for line in lines if line.startswith(("Error", "Interrupted", "Traceback"))]


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")


@pytest.mark.slow
@needs_proc
def test_a_killed_rank_ends_the_run_with_a_sentence() -> None:
    with started() as process:
        wait(process, trains)
        (victim,) = [pid for pid, its_rank in alive(process.pid).items() if its_rank == "1"]
        os.kill(victim, signal.SIGKILL)
        assert ended(process) == (
            137,
            [
                f"Error: rank 1 of 2 (process {victim}) was ended by SIGKILL, as the system does when memory is "
                f"short, so the others were stopped: {HINT}"
            ],
        )


@pytest.mark.slow
@needs_proc
def test_the_ranks_end_with_the_process_that_watches_them() -> None:
    with started() as process:
        wait(process, trains)
        process.kill()
        assert ended(process) == (-signal.SIGKILL, [])


@pytest.mark.slow
@needs_proc
def test_an_exception_in_a_rank_ends_the_run_with_a_sentence() -> None:
    Path("sitecustomize.py").write_text(BROKEN)
    with started(PYTHONPATH=os.getcwd()) as process:
        assert ended(process) == (1, ["Error: broken here"])
    assert "Traceback" not in Path("errors").read_text()


@pytest.mark.slow
@needs_proc
def test_a_refusal_of_rank_0_is_one_sentence() -> None:
    with started("--method", "byol", "--batch-size", "2") as process:
        assert ended(process) == (
            2,
            [
                "Error: batch_size is 2, 1 image on each of 2 devices, but 'byol' has a BatchNorm1d, which needs 2 or "
                "more: use --batch-size 4 or more, or fewer devices"
            ],
        )
    assert not Path("run").exists()


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("number", "moment"), [(signal.SIGINT, "launch"), (signal.SIGTERM, "first evaluation")])
def test_an_interruption_ends_all_ranks(number: signal.Signals, moment: str) -> None:
    """Ctrl-C reaches all processes, and SIGTERM the first one only."""
    with started() as process:
        ready = {
            "launch": lambda: Path("run/config.toml").exists(),
            "first evaluation": lambda: "epoch 0/300" in Path("out").read_text(),
        }
        wait(process, ready[moment])
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        name = "" if number == signal.SIGINT else " by SIGTERM"
        assert ended(process) == (128 + number, [f"Interrupted{name}. {HINT[0].upper()}{HINT[1:]}."])
    assert "Traceback" not in Path("errors").read_text()
