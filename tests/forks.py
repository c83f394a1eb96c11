"""Helper for distributed tests, whose ranks are forks of one script that imports torch once.

Only such scripts import it.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import connection, get_context


def failed(work: Callable[[int], None], world: int) -> bool:
    """Call `work` in one process per rank and return whether any rank failed. A failure kills the other ranks."""
    ranks = [get_context("fork").Process(target=work, args=(rank,)) for rank in range(world)]
    for process in ranks:
        process.start()
    while running := [process.sentinel for process in ranks if process.is_alive()]:
        connection.wait(running)
        if any(process.exitcode for process in ranks):
            for process in ranks:
                process.kill()  # A rank that still runs would wait for the failed one.
    return any(process.exitcode for process in ranks)
