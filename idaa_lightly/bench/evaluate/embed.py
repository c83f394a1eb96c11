"""Features of a network for other programs, and for `idaa-bench knn`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from idaa_lightly.bench.evaluate.targets import holds_features, read_features
from idaa_lightly.bench.features import Features
from idaa_lightly.errors import UsageError
from idaa_lightly.files import atomic_write


def embed_target(target: Path, out: Path, *, backbone: str | None = None, data: str | None = None) -> Features:
    """Write the features of a target's images, without augmentation, to an .npz.

    Args:
        target: A run directory, its checkpoints/last.ckpt, or a state dict of torchvision or timm.
        out: The .npz. Its arrays are the fields of `Features`.
        backbone: Name of the network of a state dict.
        data: Images to embed instead of the run's.

    Raises:
        FileFormatError: The target is none of these.
        UsageError: `out` is no .npz, the target holds features already, or an option does not go with it.
    """
    if out.suffix != ".npz" or out.is_dir():
        raise UsageError(f"--out is {out}, but expected a file whose name ends in .npz")
    if holds_features(target):
        raise UsageError(f"{target} holds features already: expected a network")
    features = read_features(target, backbone=backbone, data=data)
    with atomic_write(out) as temporary:
        arrays: dict[str, Any] = {name: np.asarray(part) for name, part in features._asdict().items()}
        np.savez(temporary, **arrays)
    return features
