"""Configuration of a semi-supervised run. This module imports neither torch nor lightly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge

from idaa_lightly.bench.config import RunConfig, _option
from idaa_lightly.options import Count

SemiMethod = Literal["fixmatch", "supervised"]
UNUSED = {"accumulate", "compile", "eval_data", "save_every", "vae", "view_size", "views", "weights"}
"""Fields of `RunConfig` that a semi-supervised run does not have."""


@dataclass(frozen=True)
class SemiConfig(RunConfig):
    """Configuration of a semi-supervised run. Fields that are None are filled in as those of `RunConfig`."""

    method: SemiMethod = _option(
        "fixmatch", f"Method: {' or '.join(get_args(SemiMethod))}, which trains on the labelled images alone."
    )
    backbone: str | None = _option(
        "wrn-28-2", "Wide ResNet by depth and width, such as wrn-28-2, wrn-28-8 or the small wrn-10-1."
    )
    epochs: Count | None = _option(
        None, "Passes over all training images, without their labels. Default: as many as make 200 000 steps."
    )
    batch_size: Annotated[int, Ge(2)] | None = _option(
        None,
        "Labelled images per batch, summed over all devices. Seven times as many come without labels. Default: 64.",
    )
    labels: Count = _option(400, "Labelled images, balanced over the classes. The seed chooses them.")

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the fields that can be set."""
        return [name for name in super().names() if name not in UNUSED]
