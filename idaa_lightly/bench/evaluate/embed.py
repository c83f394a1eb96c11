"""Export of features to an .npz file, for other programs and for `idaa-bench knn` and `linear`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from idaa_lightly.bench.evaluate.state_dicts import NOTHING, Given
from idaa_lightly.bench.evaluate.targets import holds_features, read_features
from idaa_lightly.errors import UsageError
from idaa_lightly.files import atomic_write


def embed_target(target: Path, out: Path, given: Given = NOTHING) -> dict[str, Any]:
    """Embed images without augmentation, and write their features to an .npz file.

    Args:
        target: A run directory, one of its checkpoints, or a state dict from torchvision or timm.
        out: File to write. Its arrays are the fields of `Features`, or `train_features` only if there are no labels.
        given: Options about the network and its images. `data` defaults to the data set that the run was evaluated
            on, or else the one that it was trained on.

    Returns:
        The arrays, by name.

    Raises:
        FileFormatError: The target is none of these.
        UsageError: `out` does not end in .npz, the target already holds features, or an option does not go with it.
    """
    if out.suffix != ".npz" or out.is_dir():
        raise UsageError(f"--out is {out}, but expected a file whose name ends in .npz")
    if holds_features(target):
        raise UsageError(f"{target} holds features already: expected a network")
    features = read_features(target, given, labelled=False)
    names = features._fields if len(features.test_features) else ("train_features",)
    arrays: dict[str, Any] = {name: np.asarray(getattr(features, name)) for name in names}
    with atomic_write(out) as temporary:
        np.savez(temporary, **arrays)
    return arrays
