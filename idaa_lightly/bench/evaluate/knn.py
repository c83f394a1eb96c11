"""kNN evaluation of runs and of other people's features.

RUN/knn.json is as `idaa_lightly.bench.evaluate.store` describes. It has one result, "knn", which adds:

    bank, queries     their sizes
    backend           what searched
    accuracies        [{k, temperature, top1, top5, recall, change}], as `KNNAccuracy`
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from idaa_lightly.bench.evaluate.store import Evaluation, Family, Result, evaluate_features
from idaa_lightly.bench.features import Features
from idaa_lightly.evaluation.knn import knn_sweep, neighbours_that_vote
from idaa_lightly.evaluation.search import backend

log = logging.getLogger(__name__)


def evaluate_knn(
    targets: Iterable[Path],
    k: Sequence[int],
    temperature: Sequence[float],
    *,
    index: str | None = None,
    backbone: str | None = None,
    data: str | None = None,
) -> list[Family]:
    """Compute top-1 and top-5 accuracy for every pair of k and temperature, after one search.

    Args:
        targets: As for `evaluate_features`.
        k: Numbers of neighbours.
        temperature: Temperatures of the votes.
        index: Index of FAISS, for an approximate search; see `knn_sweep`.
        backbone: Name of the network of a state dict.
        data: Images to embed instead of a run's. Nothing is kept then.

    Returns:
        The targets, with runs of one configuration together; each has the result "knn".

    Raises:
        FileFormatError: A target cannot be evaluated.
        UsageError: An option is out of range, or does not go with a target.
    """
    neighbours_that_vote(k, temperature, max(k))  # refused before anything is embedded
    options = {"k": list(k), "temperature": list(temperature), "index": index}
    evaluation = Evaluation(options, lambda features: (_search(features, k, temperature, index), torch.device("cpu")))
    return evaluate_features(targets, "knn.json", {"knn": evaluation}, backbone=backbone, data=data)


def _search(features: Features, k: Sequence[int], temperature: Sequence[float], index: str | None) -> Result:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        accuracies = knn_sweep(*features, k, temperature, index=index)
    for note in notes:
        log.info(f"Note: {note.message}.")
    bank, queries = features.train_features, features.test_features
    return {
        "bank": len(bank),
        "queries": len(queries),
        "backend": backend(len(queries) * queries.shape[1], index),
        "accuracies": [found._asdict() for found in accuracies],
    }
