"""Signs that a training went wrong although it ended without an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idaa_lightly.vae import worse_than_mean

LOST_POINTS = 1.0
"""Points of kNN accuracy that training may cost before the run is warned of."""
COLLAPSED = 0.1
"""Embeddings with a smaller spread count as collapsed; see `idaa_lightly.evaluation.unlabelled.spread`."""

ALIKE = 0.05
"""Perturbations of a network with a smaller spread count as all alike; see `idaa_lightly.learned.LatentNetwork`."""


def warnings_of(
    history: Sequence[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]], fitted: Mapping[str, Any]
) -> list[str]:
    """Return warnings about a finished training, a sentence without its full stop each.

    Args:
        history: Evaluations of the run, from epoch 0.
        rows: Rows of metrics.csv.
        fitted: Facts about the fitting before training, such as that of the VAE.
    """
    first, last, found = history[0], history[-1], []
    if fault := worse_than_mean(fitted.get("vae", {})):
        found.append(fault)
    fallbacks = 0.0
    by_name: dict[str, list[float]] = {"loss/clean_epoch": [], "loss/total_epoch": [], "attack/spread": []}
    for row in rows:
        for name, values in by_name.items():
            if row.get(name) not in (None, ""):
                values.append(float(row[name]))
        fallbacks += float(row.get("attack/fallbacks") or 0)
    spreads = by_name.pop("attack/spread")
    losses = next(filter(None, by_name.values()), [])
    if len(losses) > 1 and losses[-1] >= losses[0]:
        found.append(
            f"the loss did not fall: its mean was {losses[0]:.4g} in the first epoch and {losses[-1]:.4g} in the last"
        )
    if "knn" in last:
        before, after = 100 * first["knn"], 100 * last["knn"]
        if after < before - LOST_POINTS:
            found.append(f"training cost accuracy: kNN had {before:.2f} % before it and has {after:.2f} % after it")
    if last.get("embedding_spread", 1.0) < COLLAPSED:
        found.append(
            f"the embeddings have collapsed: their standard deviation is {last['embedding_spread']:.2g} of 1/sqrt(D), "
            f"but expected {COLLAPSED} or more"
        )
    if spreads and spreads[-1] < ALIKE:
        found.append(
            f"the network's perturbations are all alike: their spread is {spreads[-1]:.2g}, but expected {ALIKE} or "
            "more"
        )
    if fallbacks > 0:
        found.append(
            f"the attack became NaN or infinite for {fallbacks:.0f} samples, counting repeats across epochs, which "
            "kept their clean view"
        )
    return found
