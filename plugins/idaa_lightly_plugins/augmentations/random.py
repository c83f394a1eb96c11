"""Control of IDAA: a random direction instead of the attack."""

from __future__ import annotations

from typing import Any

from idaa_lightly.errors import UsageError
from idaa_lightly_plugins.augmentations.idaa import IDAA


class Random(IDAA):
    """Control of IDAA: a random direction of the same length instead of the attack.

    A gain that remains with this control does not come from the attack. The option `random` gives the same control for
    every other search, such as `--aug clae --set aug.random=true`.

    Raises:
        UsageError: `random` is False.
    """

    starts_at_input = False

    def __init__(self, *, random: bool = True, **options: Any) -> None:
        if not random:
            raise UsageError("random is false, which is idaa itself: choose --aug idaa")
        super().__init__(random=random, **options)
