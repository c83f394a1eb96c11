"""Random seeds: derived from keys in one place, so that streams never overlap by accident."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*key: int | str) -> int:
    """A seed of 64 bits; keys that differ give seeds that have nothing in common."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds the random streams that transforms draw from (torch, numpy, random) by `key`, and restores them."""
    seed = seed_of(*key)
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
