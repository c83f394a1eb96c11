"""Linear evaluation of runs, other checkpoints and feature files, by several protocols.

`idaa_lightly.bench.evaluate.store` describes the layout of RUN/linear.json. Results are named by protocol and add:

    protocol          the protocol in words
    accuracy          top-1, for paper and sgd after the last epoch; cite this
    best              paper and sgd: {epoch, accuracy, selected_on} of the best epoch. It is selected on the test
                      images, so its accuracy is optimistic
    l2                lbfgs: L2 strength that was chosen
    mean_per_class    lbfgs: mean of the accuracies of the classes
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idaa_lightly.bench.evaluate.state_dicts import NOTHING, Given
from idaa_lightly.bench.evaluate.store import Evaluation, Family, Result, evaluate_features
from idaa_lightly.bench.features import Features, pick_device
from idaa_lightly.bench.progress import progress
from idaa_lightly.errors import UsageError, suggestion
from idaa_lightly.evaluation.linear import (
    BATCH_SIZE,
    PAPER_EPOCHS,
    SGD_EPOCHS,
    linear_probe,
    paper_probe,
    sgd_probe,
)

PROTOCOLS = {
    "paper": f"Adam, learning rate 3e-4, batch {BATCH_SIZE}, on features as they are",
    "lbfgs": "L-BFGS on standardised features, L2 strength chosen on a tenth of train",
    "sgd": f"SGD, learning rate 0.1 × batch / 256, momentum 0.9, cosine, batch {BATCH_SIZE}, on features as they are",
}
EPOCHS = {"paper": PAPER_EPOCHS, "sgd": SGD_EPOCHS}


def evaluate_linear(
    targets: Iterable[Path],
    protocols: list[str],
    *,
    seed: int = 0,
    epochs: int | None = None,
    given: Given = NOTHING,
) -> list[Family]:
    """Train linear layers on frozen features, one per target and protocol.

    Args:
        targets: Targets of `evaluate_features`.
        protocols: Names from `PROTOCOLS`.
        seed: Seed of the validation split, the initial weights and the batches.
        epochs: Epochs of the protocols paper and sgd. Default: 1000 and 90.
        given: Options about networks and images. If there are any, features and results are not kept.

    Returns:
        Families of runs that differ only in their seed, and other targets, with results by protocol.

    Raises:
        FileFormatError: A target cannot be evaluated.
        UsageError: There is no such protocol, an option does not go with a target, or a run appears twice.
        DataError: There are too few features, or their shapes do not match.
        NonFiniteError: Features hold NaN or infinity.
    """
    evaluations = {}
    for name in protocols:
        if name not in PROTOCOLS:
            raise UsageError(f"no protocol {name!r}; known: {', '.join(PROTOCOLS)}.{suggestion(name, PROTOCOLS)}")
        options = {"seed": seed, "epochs": (epochs or EPOCHS[name]) if name in EPOCHS else None}
        evaluations[name] = Evaluation(options, partial(_probe, name, options))
    return evaluate_features(targets, "linear.json", evaluations, given)


def _probe(name: str, options: dict[str, Any], features: Features) -> tuple[Result, torch.device]:
    device, seed, epochs = pick_device(), options["seed"], options["epochs"]
    parts = [_tensor(part).to(device) for part in features]
    found: Result
    if name == "lbfgs":
        found = linear_probe(*parts, seed=seed)._asdict()
    else:
        probe = {"paper": paper_probe, "sgd": sgd_probe}[name]
        trained = probe(*parts, epochs=epochs, seed=seed, on_epoch=progress(name, epochs))
        best = {"epoch": trained.best_epoch, "accuracy": trained.best, "selected_on": "the test images: optimistic"}
        found = {"accuracy": trained.accuracy, "best": best}
    return {"protocol": PROTOCOLS[name]} | found, device


def _tensor(values: Any) -> Tensor:
    """Return values as a tensor. Arrays are copied, because they may be read-only files, or of another byte order."""
    return values if isinstance(values, Tensor) else torch.tensor(values.astype(values.dtype.newbyteorder("=")))
