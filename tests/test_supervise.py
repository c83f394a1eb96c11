"""The process that watches ranks, with a small program in their place. tests/test_ranks.py has real ones."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from idaa_lightly.bench.run import ranks
from idaa_lightly.errors import RankError

PROGRAM = """#!{python}
import os, signal, sys, time
from multiprocessing.connection import Connection
rank = os.environ["LOCAL_RANK"]
watching = Connection(int(os.environ["IDAA_LIGHTLY_CONNECTION"]))
open(f"rank-{{rank}}", "w").write(f"{{os.getpid()}} {{os.environ.get('MASTER_PORT')}} {{sys.argv[1:]}}")
if rank == "0":
    {first}
else:
    {second}
"""
START = "watching.send(1234); "
"""Sends the port, after which the other rank is started."""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
WAIT = "time.sleep(600)"
REST = "so the others were stopped: repeat the command with --resume to continue after the last finished epoch"


def supervised(first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Supervise two ranks that run these lines."""
    program = Path("program")
    program.write_text(PROGRAM.format(python=sys.executable, first=first, second=second))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program.resolve()))
    ranks.supervise(["run", "--epochs", "3"], 2)


def pids() -> list[int]:
    return [int(path.read_text().split()[0]) for path in sorted(Path().glob("rank-*"))]


def test_both_ranks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    supervised(START, "pass", monkeypatch)
    found = [path.read_text().split(" ", 1)[1] for path in sorted(Path().glob("rank-*"))]
    arguments = "['-m', 'idaa_lightly.cli', 'run', '--epochs', '3']"
    assert found == [f"None {arguments}", f"1234 {arguments}"]


def test_ctrl_c_does_not_reach_a_rank_that_is_still_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches all processes of the terminal. A rank would print a traceback before it can prepare for it."""
    interrupted = "os.kill(os.getpid(), signal.SIGINT); open(f'{rank} lives on', 'w')"
    supervised(START + interrupted, interrupted, monkeypatch)
    assert sorted(path.name for path in Path().glob("* lives on")) == ["0 lives on", "1 lives on"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


@pytest.mark.parametrize(
    ("first", "second", "sentence", "code"),
    [
        (START + WAIT, KILL, f"rank 1 of 2 (process P1) was ended by SIGKILL, as the system does when .*, {REST}", 137),
        (START + KILL, "time.sleep(0.3); sys.exit(76)", "rank 0 of 2 (process P0) was ended by SIGKILL, .*", 137),
        (START + WAIT, "sys.exit(76)", f"rank 1 of 2 (process P1) ended with exit code 76, {REST}", 76),
        (START + WAIT, "sys.exit(143)", f"rank 1 of 2 (process P1) was ended by SIGTERM, {REST}", 143),
        (START + WAIT, "sys.exit(1)", f"rank 1 of 2 (process P1) ended with exit code 1, {REST}", 1),
        (START + WAIT, "watching.send('broken here'); sys.exit(1)", "broken here", 1),
        ("watching.send('refused'); sys.exit(2)", "", "refused", 2),
        (KILL, "", "rank 0 of 2 (process P0) was ended by SIGKILL, .*", 137),
    ],
    ids=["killed", "killed first", "lost", "terminated", "failed", "said", "refused", "killed at the start"],
)
def test_a_rank_that_fails_is_named_and_none_is_left(
    first: str, second: str, sentence: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that lost the connection (76) is named only if no other one fails."""
    monkeypatch.setattr(ranks, "PATIENCE", 1.0)
    with pytest.raises(RankError) as caught:
        supervised(first, second or "pass", monkeypatch)
    for number, pid in enumerate(pids()):
        sentence = sentence.replace(f"(process P{number})", rf"\(process {pid}\)")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert re.fullmatch(sentence, str(caught.value))
    assert caught.value.exit_code == code
