"""Writes the features of a network, for other programs and for `idaa-bench knn`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from idaa_lightly.bench.evaluate.targets import ARRAYS, holds_features, read_features
from idaa_lightly.errors import UsageError
from idaa_lightly.files import atomic_write


def embed_target(
    target: Path, out: Path, console: Console, *, backbone: str | None = None, data: str | None = None
) -> dict[str, Any]:
    """Embeds a target's images without augmentation into an .npz of the arrays `ARRAYS`.

    Args:
        target: a run folder, its checkpoints/last.ckpt, or a state dict of torchvision or timm.
        out: the .npz.
        console: for what is said on the way.
        backbone: name of the network of a state dict.
        data: images to embed, in the place of the run's.

    Returns:
        The features (N, D) in float32 and labels (N,), by name.

    Raises:
        FileFormatError: the target is none of these.
        UsageError: `out` is no .npz, the target holds features already, or an option does not go with it.
    """
    if out.suffix != ".npz" or out.is_dir():
        raise UsageError(f"--out is {out}, but expected a file whose name ends in .npz")
    if holds_features(target):
        raise UsageError(f"{target} holds features already: expected a network")
    features = read_features(target, console, backbone=backbone, data=data)
    arrays = {name: np.asarray(features[name]) for name in ARRAYS}
    with atomic_write(out) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
    return arrays
