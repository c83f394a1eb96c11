"""Weighted k-nearest-neighbour classification.

Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, Sec. 3.4.
Results equal those of Lightly's `knn_predict` up to ties.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from idaa_lightly.errors import DataError, UsageError
from idaa_lightly.evaluation.search import Search, blocks, faiss_index, nearest, query_blocks

NO_PLACE = 2**31  # rank of a class without a vote; outside every top-n, even with fewer than n classes
VOTE_BLOCK = 512  # queries per block of votes; a table takes 4 MiB at 1000 classes
SAMPLE = 1000  # queries that are also searched exactly, to know the effect of an index to about one point


class KNNAccuracy(NamedTuple):
    """Accuracies in [0, 1] for one k and one temperature, and the error of an approximate index.

    Attributes:
        k: Number of neighbours that voted.
        temperature: Temperature of the votes.
        top1: Fraction of queries whose class is ranked first.
        top5: Fraction of queries whose class is among the first five. A class without a vote is a miss.
        recall: Fraction of the k exact neighbours that the index found, on a sample of the queries. None for an exact
            search.
        change: Top-1 accuracy with the index minus top-1 accuracy of the exact search, on the same sample. None for an
            exact search.
    """

    k: int
    temperature: float
    top1: float
    top5: float
    recall: float | None = None
    change: float | None = None


def knn_classify(
    bank: Any,
    bank_labels: Any,
    queries: Any,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int | None = None,
) -> Tensor:
    """Rank the classes of each query by the weighted votes of its k nearest neighbours.

    Each neighbour votes with weight exp(cosine / T). Features need not be normalised. Similarities are accumulated in
    float32 for every storage type, such as half precision. Apart from the inputs and the result, at most 512 MiB of
    memory are used.

    Args:
        bank: Features (N, D), a tensor or array, possibly memory-mapped.
        bank_labels: Class indices (N,).
        queries: Features (M, D).
        k: Number of neighbours that vote, at least 1. Reduced to N with a warning if it is larger.
        temperature: Temperature T of the votes. Must be above 0.
        num_classes: Number of columns of the result. None takes 1 + the largest label.

    Returns:
        Class indices (M, num_classes), best first. The entries of classes without a vote are -1.

    Raises:
        DataError: Shapes do not match, or a label is negative or too large.
        NonFiniteError: The features hold NaN or infinity.
        UsageError: `k` or `temperature` is out of range.

    Example:
        >>> bank, labels = torch.eye(3), [0, 1, 2]
        >>> knn_classify(bank, labels, torch.tensor([[0.0, 0.1, 0.9]]), k=2)
        tensor([[ 2,  1, -1]])
    """
    labels, classes = _checked(bank, bank_labels, queries, num_classes)
    (k,) = neighbours_that_vote([k], [temperature], len(bank))
    ranked = torch.empty(len(queries), classes, dtype=torch.long)
    for rows, similarities, neighbours in _searched(bank, queries, k, None, normalize=True):
        scores = _scores(similarities, labels[neighbours], temperature, classes)
        order = scores.argsort(dim=1, descending=True, stable=True)
        ranked[rows] = order.masked_fill(scores.gather(1, order) < 0, -1)
    return ranked


def knn_sweep(
    bank: Any,
    bank_labels: Any,
    queries: Any,
    query_labels: Any,
    k: Sequence[int] = (1, 5, 20, 200),
    temperature: Sequence[float] = (0.07, 0.1, 0.5),
    *,
    index: str | None = None,
) -> list[KNNAccuracy]:
    """Compute kNN accuracies for every pair of k and temperature, in about the time of a single search.

    Args:
        bank: Features (N, D), a tensor or array, possibly memory-mapped.
        bank_labels: Class indices (N,).
        queries: Features (M, D).
        query_labels: Class indices (M,). Queries of a class that the bank lacks count as misses, with a warning.
        k: Numbers of neighbours. Values above N are reduced to N with a warning.
        temperature: Temperatures of the votes.
        index: FAISS index factory string for an approximate search in banks of millions of features, such as
            "IVF256,Flat;nprobe=16"; see `faiss_index`. The index holds the bank in memory in its own format. 1000
            queries are also searched exactly to compute `recall` and `change`. None searches exactly.

    Returns:
        Accuracies of each pair, in ascending order of k and then of temperature.

    Raises:
        DataError: Shapes do not match, a label is negative or too large, or the index finds no neighbour of a query.
        NonFiniteError: The features hold NaN or infinity.
        UsageError: A k or temperature is out of range, or FAISS is missing or rejects the index.

    Example:
        >>> bank, labels = torch.eye(3), [0, 1, 2]
        >>> queries, targets = torch.tensor([[0.0, 0.1, 0.9]]), [2]
        >>> knn_sweep(bank, labels, queries, targets, k=[1, 2], temperature=[0.1])[0]
        KNNAccuracy(k=1, temperature=0.1, top1=1.0, top5=1.0, recall=None, change=None)
    """
    ks = sorted(set(neighbours_that_vote(k, temperature, len(bank))))
    ts = sorted(set(temperature))
    search = None if index is None else faiss_index(bank, index)
    places = knn_places(bank, bank_labels, queries, query_labels, ks, ts, search=search)
    top1, top5 = ((places < n).double().mean(2) for n in (1, 5))
    pairs = [(i, j) for i in range(len(ks)) for j in range(len(ts))]
    if search is None:
        return [KNNAccuracy(ks[i], ts[j], top1[i, j].item(), top5[i, j].item()) for i, j in pairs]
    chosen = np.random.default_rng(0).permutation(len(queries))[:SAMPLE]
    similarities, at = nearest(bank, queries[chosen], ks[-1])
    found = search(queries[chosen], ks[-1])[1]
    recall = [_recall(at[:, :count], found[:, :count]) for count in ks]
    labels, targets = as_labels(bank_labels), as_labels(query_labels)
    classes = 1 + int(max(labels.max(), targets.max()))
    exact = _places(similarities, labels[at], targets[chosen], ks, ts, classes)
    change = (places[:, :, chosen] < 1).double().mean(2) - (exact < 1).double().mean(2)
    return [
        KNNAccuracy(ks[i], ts[j], top1[i, j].item(), top5[i, j].item(), recall[i], change[i, j].item())
        for i, j in pairs
    ]


def knn_places(
    bank: Any,
    bank_labels: Any,
    queries: Any,
    query_labels: Any,
    k: Sequence[int],
    temperature: Sequence[float],
    num_classes: int | None = None,
    *,
    normalize: bool = True,
    search: Search | None = None,
) -> Tensor:
    """Compute the rank of each query's own class, for every k and temperature, with a single search.

    Args:
        bank: Features (N, D).
        bank_labels: Class indices (N,).
        queries: Features (M, D).
        query_labels: Class indices (M,).
        k: Numbers of neighbours.
        temperature: Temperatures of the votes.
        num_classes: Number of classes. None takes 1 + the largest label.
        normalize: Compare by cosine. False compares by the inner product, as Lightly's `KNNClassifier` can.
        search: Function from queries and k to their neighbours. None searches exactly.

    Returns:
        Ranks (len(k), len(temperature), M), where 0 is the best. A class without a vote has rank NO_PLACE. The top-n
        prediction of a query is correct if its rank is below n.

    Raises:
        DataError: Shapes do not match, there are no queries, or a label is negative or too large.
        NonFiniteError: The features hold NaN or infinity.
        UsageError: A k or temperature is out of range.
    """
    targets = as_labels(query_labels)
    if targets.shape != (len(queries),) or not len(targets) or targets.min() < 0:
        raise DataError(
            f"query_labels has shape {tuple(targets.shape)} and minimum {targets.min() if len(targets) else None}, but "
            f"expected ({len(queries)},) with classes from 0, one or more"
        )
    if num_classes is None:
        num_classes = 1 + max(int(as_labels(bank_labels).max()) if len(bank_labels) else 0, int(targets.max()))
    labels, classes = _checked(bank, bank_labels, queries, num_classes)
    if targets.max() >= classes:
        raise DataError(f"a query's label is {targets.max()}, but num_classes is {classes}")
    lost = ~torch.isin(targets, labels)
    if lost.any():
        warnings.warn(
            f"{len(targets[lost].unique())} of the queries' {len(targets.unique())} classes are missing in the bank, "
            f"such as {targets[lost][0]}: {int(lost.sum())} of {len(targets)} queries count as misses",
            stacklevel=2,
        )
    ks = neighbours_that_vote(k, temperature, len(bank))
    places = torch.empty(len(ks), len(temperature), len(targets), dtype=torch.long)
    for rows, similarities, at in _searched(bank, queries, max(ks), search, normalize=normalize):
        places[:, :, rows] = _places(similarities, labels[at], targets[rows], ks, temperature, classes)
    return places


def neighbours_that_vote(k: Sequence[int], temperature: Sequence[float], bank: int) -> list[int]:
    """Check k and temperature, and reduce each k to the size of the bank with a warning.

    Args:
        k: Numbers of neighbours.
        temperature: Temperatures of the votes.
        bank: Number of features in the bank.

    Raises:
        UsageError: A k or temperature is out of range.
    """
    if not k or not temperature or min(k) < 1 or not all(0 < t < float("inf") for t in temperature):
        raise UsageError(
            f"k is {', '.join(map(str, k))} and temperature {', '.join(map(str, temperature))}, but k must be 1 or "
            "more and temperature above 0"
        )
    if max(k) > bank:
        warnings.warn(f"k is {max(k)}, but the bank has {bank} features: using {bank}", stacklevel=3)
    return [min(count, bank) for count in k]


def as_labels(values: Any) -> Tensor:
    """Convert class indices to an int64 tensor on the CPU.

    Args:
        values: Class indices, a tensor, array or sequence.

    Raises:
        DataError: The labels are floating-point numbers.
    """
    if not isinstance(values, Tensor):
        array = np.array(values)
        values = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    labels: Tensor = values
    if labels.is_floating_point() and labels.numel():
        raise DataError(f"labels are of type {labels.dtype}, but expected integers: classes from 0")
    return labels.long().cpu()


def _checked(bank: Any, bank_labels: Any, queries: Any, num_classes: int | None) -> tuple[Tensor, int]:
    """Return the bank's labels and the number of classes, after checking all shapes and labels."""
    labels = as_labels(bank_labels)
    if len(bank.shape) != 2 or len(queries.shape) != 2 or bank.shape[1] != queries.shape[1] or 0 in bank.shape:
        raise DataError(
            f"bank has shape {tuple(bank.shape)} and queries {tuple(queries.shape)}, but expected (N, D) and (M, D) "
            "with N and D of 1 or more"
        )
    if labels.shape != (len(bank),) or labels.min() < 0:
        raise DataError(
            f"bank_labels has shape {tuple(labels.shape)} and minimum {labels.min() if labels.numel() else None}, "
            f"but expected ({len(bank)},) with classes from 0"
        )
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.max() >= classes:
        raise DataError(f"a label is {labels.max()}, but num_classes is {classes}")
    return labels, classes


def _searched(
    bank: Any, queries: Any, k: int, search: Search | None, *, normalize: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a slice of queries, its similarities (n, k) and its neighbours (n, k), with n up to VOTE_BLOCK."""
    find = search or partial(nearest, bank, normalize=normalize)
    for rows in query_blocks(len(queries), queries.shape[1], k):
        similarities, neighbours = find(queries[rows], k)
        for part in blocks(len(neighbours), VOTE_BLOCK):
            yield slice(rows.start + part.start, rows.start + part.stop), similarities[part], neighbours[part]


def _places(
    similarities: Tensor, labels: Tensor, targets: Tensor, ks: Sequence[int], temperature: Sequence[float], classes: int
) -> Tensor:
    """Compute the ranks (K, T, n) of the targets (n,) from the similarities and labels (n, k) of the neighbours."""
    places = torch.empty(len(ks), len(temperature), len(targets), dtype=torch.long)
    own, before = targets[:, None], torch.arange(classes) < targets[:, None]
    for i, k in enumerate(ks):
        for j, t in enumerate(temperature):
            scores = _scores(similarities[:, :k], labels[:, :k], t, classes)
            votes = scores.gather(1, own)
            ahead = (scores > votes) | ((scores == votes) & before)  # ties as in a stable sort
            places[i, j] = ahead.sum(1).masked_fill(votes[:, 0] < 0, NO_PLACE)
    return places


def _scores(similarities: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Sum exp(similarity / T) for each class, (n, num_classes), up to a factor per row. -1 means no vote."""
    weights = ((similarities.double() - similarities[:, :1].double()) / temperature).exp()  # at most 1, so no overflow
    scores = torch.zeros(len(labels), num_classes, dtype=torch.double).scatter_add_(1, labels, weights)
    voted = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels, True)
    return scores.masked_fill_(~voted, -1.0)


def _recall(exact: Tensor, found: Tensor) -> float:
    """Compute the fraction of the exact neighbours (n, k) that are among the found ones (n, k)."""
    offset = torch.arange(len(exact))[:, None] * (1 + max(exact.max(), found.max()))  # unique ids per query
    return torch.isin(exact + offset, found + offset).double().mean().item()
