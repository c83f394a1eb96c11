"""Processes of a run on several devices (DDP), one per device. The process of the command starts and watches them.

The watching process trains nothing and outlives the ranks. It says which one died, and ends the others. It is not used
under torchrun and Slurm, which start the ranks themselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from idaa_lightly.errors import RankError

CONNECTION = "IDAA_LIGHTLY_CONNECTION"
"""Environment variable of a rank: file descriptor of its connection to the watching process."""
PATIENCE = 10.0
"""Seconds that ranks get to end by themselves."""
POLL = 0.1


class Rank:
    """A rank, as the watching process sees it.

    Args:
        arguments: Arguments of `idaa-bench`.
        number: Number of the rank.
        port: Port at which rank 0 waits for the others. None for rank 0.
    """

    def __init__(self, arguments: Sequence[str], number: int, port: int | None = None) -> None:
        self.number = number
        self.connection, theirs = Pipe()
        variables = {"LOCAL_RANK": str(number), CONNECTION: str(theirs.fileno())}
        # Ctrl-C reaches all processes. It is blocked in the ranks, and the watching process passes it on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "idaa_lightly.cli", *arguments],
                env=os.environ | variables | ({} if port is None else {"MASTER_PORT": str(port)}),
                pass_fds=[theirs.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def receive(self) -> int | str | None:
        """Wait for the next message: the port of rank 0, or the sentence of an error. None if the process has ended."""
        with suppress(EOFError, OSError):
            message: int | str = self.connection.recv()
            return message
        return None

    def failure(self, count: int) -> RankError:
        """Return the error of this rank, which has ended: the sentence that it sent, or how it ended.

        Args:
            count: Number of ranks.
        """
        code, sentence = self.process.returncode, None
        while self.connection.poll() and (message := self.receive()) is not None:
            sentence = message if isinstance(message, str) else sentence
        if sentence is None:
            number = -code if code < 0 else code - 128  # A rank that handles a signal exits as shells do.
            names = {item.value: item.name for item in signal.Signals}
            how = f"was ended by {names[number]}" if number in names else f"ended with exit code {code}"
            why = {"SIGKILL": ", as the system does when memory is short"}.get(names.get(number, ""), "")
            sentence = (
                f"rank {self.number} of {count} (process {self.process.pid}) {how}{why}, so the others were stopped: "
                "repeat the command with --resume to continue after the last finished epoch"
            )
        return RankError(sentence, 128 - code if code < 0 else code)


def supervise(arguments: Sequence[str], count: int) -> None:
    """Run a command in one process per rank, and wait until all have ended.

    Rank 0 starts alone, checks the options and fits the augmentation. The others start when it calls `start_others`.

    Args:
        arguments: Arguments of `idaa-bench`.
        count: Number of ranks.

    Raises:
        RankError: A rank failed or was killed, and all others have been killed.
        KeyboardInterrupt: This process was interrupted. It has passed this on to the ranks, and all have ended.
    """
    ranks = [Rank(arguments, 0)]
    try:
        port = ranks[0].receive()
        if isinstance(port, int):
            ranks += [Rank(arguments, number, port) for number in range(1, count)]
        failed = _first_failure(ranks)
        if failed is not None:
            raise RankError(port, failed.process.returncode) if isinstance(port, str) else failed.failure(count)
    except KeyboardInterrupt:
        for rank in ranks:
            rank.process.terminate()
        deadline = time.monotonic() + PATIENCE
        while any(rank.process.poll() is None for rank in ranks) and time.monotonic() < deadline:
            time.sleep(POLL)
        raise
    finally:
        for rank in ranks:
            rank.process.kill()  # SIGTERM would not end a rank that waits for another one.
            rank.process.wait()


def _first_failure(ranks: Sequence[Rank]) -> Rank | None:
    """Wait until a rank fails or all have ended. One that lost the connection is blamed only if no other one fails."""
    deadline = None
    while True:
        alive = [rank for rank in ranks if rank.process.poll() is None]  # Each is polled, also after one that lives.
        failed = [rank for rank in ranks if rank.process.returncode]
        causes = [rank for rank in failed if rank.process.returncode != RankError.exit_code]
        if failed and deadline is None:
            deadline = time.monotonic() + PATIENCE
        if causes or not alive or (deadline is not None and time.monotonic() > deadline):
            return next(iter([*causes, *failed]), None)
        time.sleep(POLL)


class Supervisor:
    """The watching process, as a rank sees it. If it ends, the rank ends as well.

    Args:
        descriptor: File descriptor of the connection.
    """

    def __init__(self, descriptor: int) -> None:
        self.connection = Connection(descriptor)
        threading.Thread(target=self._watch, daemon=True).start()

    def send(self, message: int | str) -> None:
        """Send a message; see `Rank.receive`."""
        with suppress(OSError):
            self.connection.send(message)

    def _watch(self) -> None:
        with suppress(EOFError, OSError):
            self.connection.recv()
        os._exit(RankError.exit_code)


@cache
def supervisor() -> Supervisor | None:
    """Return the watching process of this rank. None if this process is no rank, or if another program started it."""
    descriptor = os.environ.pop(CONNECTION, None)
    return None if descriptor is None else Supervisor(int(descriptor))
