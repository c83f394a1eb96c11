"""Random seeds: derived from keys in one place, so that streams never overlap by accident."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

STREAMS = 2
"""Version of the random streams. Raised when they change, since a resumed run would then differ."""


def seed_of(purpose: str, *key: int | str) -> int:
    """Return a seed of 64 bits; different purposes and keys give independent seeds.

    Args:
        purpose: What the random numbers are for, such as "views".
        key: What else the seed depends on, such as the seed of the run and the epoch.
    """
    return int.from_bytes(hashlib.blake2b(repr((purpose, *key)).encode(), digest_size=8).digest(), "little")


@contextmanager
def seeded(purpose: str, *key: int) -> Iterator[None]:
    """Seed the global random streams (torch, numpy, random) for the with-block, and restore them; see `seed_of`."""
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
