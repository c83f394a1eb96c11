"""Number of this process among several that train together, before Lightning has started."""

from __future__ import annotations

import os

NUMBERS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
"""Variables that number a process or its machine, set by torchrun, Slurm and Lightning."""


def is_first_process() -> bool:
    """Return True for the first of several processes that train together, and for a process alone."""
    return all(os.environ.get(name, "0") == "0" for name in NUMBERS)
