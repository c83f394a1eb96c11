"""Random seeds, derived from keys in one place so that random streams never overlap by accident."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

STREAMS = 2
"""Version of the random streams. Increased when they change, because a resumed run would then differ."""


def seed_of(purpose: str, *key: int | str) -> int:
    """Return a 64-bit seed. Different purposes and keys give independent seeds.

    Args:
        purpose: Use of the random numbers, such as "views".
        key: Further values that the seed depends on, such as the seed of the run and the epoch.
    """
    return int.from_bytes(hashlib.blake2b(repr((purpose, *key)).encode(), digest_size=8).digest(), "little")


@contextmanager
def seeded(purpose: str, *key: int) -> Iterator[None]:
    """Seed the global random streams (torch on the CPU, NumPy, random) for the with-block. Restore them on exit.

    Args:
        purpose: See `seed_of`.
        key: See `seed_of`.
    """
    seed = seed_of(purpose, *key)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
