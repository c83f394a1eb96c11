"""kNN evaluation of runs, other checkpoints and feature files.

`idaa_lightly.bench.evaluate.store` describes the layout of RUN/knn.json. The only result, "knn", adds:

    bank, queries     number of features in the bank, and of queries
    backend           library that searched, with its version
    accuracies        [{k, temperature, top1, top5, recall, change}], as in `KNNAccuracy`
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from idaa_lightly.bench.evaluate.state_dicts import NOTHING, Given
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
    given: Given = NOTHING,
) -> list[Family]:
    """Compute top-1 and top-5 accuracy for every pair of k and temperature, with one search per target.

    Args:
        targets: Targets of `evaluate_features`.
        k: Numbers of neighbours that vote.
        temperature: Temperatures of the votes.
        index: FAISS index string for an approximate search; see `knn_sweep`. Default: exact search.
        given: Options about networks and images. If there are any, features and results are not kept.

    Returns:
        Families of runs that differ only in their seed, and other targets. Each has the result "knn".

    Raises:
        FileFormatError: A target cannot be evaluated.
        UsageError: An option is out of range or does not go with a target, or a run appears twice.
    """
    neighbours_that_vote(k, temperature, max(k))  # so that a bad value is refused before anything is embedded
    options = {"k": list(k), "temperature": list(temperature), "index": index}
    evaluation = Evaluation(options, lambda features: (_search(features, k, temperature, index), torch.device("cpu")))
    return evaluate_features(targets, "knn.json", {"knn": evaluation}, given)


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
        "backend": backend(len(queries), queries.shape[1], min(max(k), len(bank)), index),
        "accuracies": [found._asdict() for found in accuracies],
    }
