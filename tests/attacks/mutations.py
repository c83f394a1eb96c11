"""Mutations of values, texts and bytes, all drawn from one `random.Random`.

Hypothesis passes its own Random to them (`strategies.randoms`), tests/attack.py one that is seeded by the case.
"""

from __future__ import annotations

import copy
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**63, -(2**64), 10**30, 10**400, -(10**400),
    0.0, -0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
    "", "a", "é☃", "a" * 300, "\x00", "\ud800", "../..", "%s{}", "[red]", [], {}, [None], {"": None}, [[0]],
)  # fmt: skip
CHARACTERS = "aZ0189.,-+:;=\"'[]{}()#\n\r\t \x00\x7fé☃\ud800"


def mutated(random: Random, whole: Any) -> Any:
    """Return a copy with one to three values deleted, replaced, repeated, scaled or added, at any depth."""
    result = copy.deepcopy(whole)
    for _ in range(random.randint(1, 3)):
        place, key = None, None
        node = result
        while isinstance(node, dict | list) and node and (place is None or random.randrange(4)):
            place, key = node, random.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node = place[key]
        if place is None:
            return _value(random)
        kind = random.choice(["delete", "replace", "repeat", "scale", "add"])
        if kind == "delete":
            del place[key]
        elif kind == "repeat" and isinstance(node, list):
            place[key] = node * 2
        elif kind == "scale" and isinstance(node, int):
            place[key] = node * random.choice([-1, 0, 2, 10**6, 10**20])
        elif kind == "scale" and isinstance(node, float):
            place[key] = node * random.choice([-1.0, 0.0, 0.5, 1e6, 1e20, 1e300])
        elif kind == "add" and isinstance(node, dict):
            node[random.choice(["", "a", "epoch", "knn", "\x00"])] = _value(random)
        else:
            place[key] = _value(random)
    return result


def edited(random: Random, text: str) -> str:
    """Return a copy of a text with up to four places removed or replaced by other characters."""
    for _ in range(random.randint(1, 4)):
        start = random.randint(0, len(text))
        added = "".join(random.choice(CHARACTERS) for _ in range(random.randint(0, 6)))
        text = text[:start] + added + text[start + random.randint(0, 12) :]
    return text


def damaged(random: Random, content: bytes) -> tuple[str, bytes]:
    """Return the name of a damage and a copy of the content with it."""
    size = len(content)
    start = random.randrange(max(1, size))
    end = min(size, start + random.choice([1, 16, 512, 4096, size]))
    kind = random.choice(["cut", "bit", "byte", "zeros", "noise", "gap", "repeat", "empty", "more"])
    result = bytearray(content)
    if kind == "cut":
        del result[start:]
    elif kind == "bit" and size:
        result[start] ^= 1 << random.randrange(8)
    elif kind == "byte" and size:
        result[start] = random.randrange(256)
    elif kind == "zeros":
        result[start:end] = bytes(end - start)
    elif kind == "noise":
        result[start:end] = random.randbytes(end - start)
    elif kind == "gap":
        del result[start:end]
    elif kind == "repeat":
        result[start:start] = result[start:end]
    elif kind == "more":
        result += random.randbytes(random.choice([1, 100, 5000]))
    else:
        result.clear()
    return f"{kind} at {start} of {size}", bytes(result)


def _value(random: Random) -> Any:
    return copy.deepcopy(random.choice(VALUES))
