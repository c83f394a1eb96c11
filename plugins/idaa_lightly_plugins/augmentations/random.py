"""The control of IDAA: a random direction in place of the attack."""

from __future__ import annotations

from typing import Any

from idaa_lightly_plugins.augmentations.idaa import IDAA


class Random(IDAA):
    """IDAA with a random direction of the same length: what remains of a gain when the attack is taken away.

    Every other search has this control, too: `--aug clae --set aug.random=true`.
    """

    def __init__(self, *, random: bool = True, **options: Any) -> None:
        super().__init__(random=random, **options)
