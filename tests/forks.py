"""The ranks of a distributed test as forks of one script, which imports torch once. Only such scripts import this."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import connection, get_context


def failed(work: Callable[[int], None], world: int) -> bool:
    """Call `work` with each rank in a process of its own, and return whether one failed. Then the others are killed."""
    ranks = [get_context("fork").Process(target=work, args=(rank,)) for rank in range(world)]
    for process in ranks:
        process.start()
    while running := [process.sentinel for process in ranks if process.is_alive()]:
        connection.wait(running)
        if any(process.exitcode for process in ranks):
            for process in ranks:
                process.kill()  # it would wait for the failed one
    return any(process.exitcode for process in ranks)
