"""Weighted k-nearest-neighbour classification.

Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, Sec. 3.4;
equal to Lightly's `knn_predict` up to ties.
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

NO_PLACE = 2**31  # of a class without a vote: beyond every top-n, also where there are fewer classes than n
VOTE_BLOCK = 512  # queries that vote at a time: 4 MiB a table at 1000 classes
SAMPLE = 1000  # queries that are also searched exactly: what an index changes is known to about a point


class KNNAccuracy(NamedTuple):
    """Accuracies in [0, 1] for one k and one temperature, and what an approximate index did to them.

    Attributes:
        k: neighbours that voted.
        temperature: of the votes.
        top1: share of the queries whose class is ranked first.
        top5: share of the queries whose class is among the first five; a class without a vote is a miss.
        recall: share of the k exact neighbours that the index found, on a sample of the queries; None without one.
        change: top-1 by the index less top-1 by the exact search, on that sample; None without one.
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
    """Ranks the classes of each query by the votes of its k nearest neighbours, each weighing exp(cosine / T).

    Features are normalised here. Similarities are accumulated in float32 whatever the storage (half precision,
    memory-mapped arrays); memory beyond the inputs and the result stays within 512 MiB.

    Args:
        bank: features (N, D), tensor or array.
        bank_labels: classes (N,) from 0.
        queries: features (M, D).
        k: neighbours that vote, 1 or more; the size of the bank, with a warning, where it is larger.
        temperature: T, above 0.
        num_classes: columns of the result; 1 + the largest label where it is None.

    Returns:
        Class indices (M, num_classes), best first; -1 where a class got no vote.

    Raises:
        DataError: shapes do not match, or a label is negative or too large.
        NonFiniteError: NaN or infinity in the features.
        UsageError: k or temperature out of range.
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
    """Accuracies for every pair of k and temperature, for the time of about one search.

    Args:
        bank: features (N, D), tensor or array; an array may be memory-mapped.
        bank_labels: classes (N,) from 0.
        queries: features (M, D).
        query_labels: classes (M,); where the bank lacks one, its queries are misses, with a warning.
        k: numbers of neighbours; the size of the bank, with a warning, where one is larger.
        temperature: of the votes.
        index: None searches exactly. For banks of millions, a string of FAISS's index factory, such as
            "IVF256,Flat;nprobe=16" (see `faiss_index`); the index holds the bank in memory in its own format, and
            1000 of the queries are searched exactly, too, for `recall` and `change`.

    Returns:
        One for each pair, those of the smallest k first.

    Raises:
        As `knn_places`, and UsageError where FAISS refuses the index.
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
    """The place of each query's own class among the ranked ones, for every k and T, after one search.

    Args:
        bank: features (N, D).
        bank_labels: classes (N,).
        queries: features (M, D).
        query_labels: classes (M,).
        k: numbers of neighbours.
        temperature: of the votes.
        num_classes: 1 + the largest label where it is None.
        normalize: to unit length; False compares by the inner product, as Lightly's `KNNClassifier` can.
        search: from normalised queries and k to their neighbours; the exact one where it is None.

    Returns:
        Places (len(k), len(temperature), M) from 0, the best; NO_PLACE where the class got no vote. A query is
        right in top-n where its place is below n.

    Raises:
        As `knn_classify`, and DataError where query_labels do not fit.
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
    """Each k, at most the size of the bank, with a warning; refuses what is out of range."""
    if not k or not temperature or min(k) < 1 or not all(0 < t < float("inf") for t in temperature):
        raise UsageError(
            f"k is {', '.join(map(str, k))} and temperature {', '.join(map(str, temperature))}, but k must be 1 or "
            "more and temperature above 0"
        )
    if max(k) > bank:
        warnings.warn(f"k is {max(k)}, but the bank has {bank} features: using {bank}", stacklevel=3)
    return [min(count, bank) for count in k]


def as_labels(values: Any) -> Tensor:
    """Classes as int64 on the CPU."""
    labels = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if labels.is_floating_point() and labels.numel():
        raise DataError(f"labels are of type {labels.dtype}, but expected integers: classes from 0")
    return labels.long().cpu()


def _checked(bank: Any, bank_labels: Any, queries: Any, num_classes: int | None) -> tuple[Tensor, int]:
    """The bank's labels and the number of classes, where everything fits."""
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
    """Rows of the queries, their similarities (n, k) and neighbours (n, k), in pieces that can vote."""
    find = search or partial(nearest, bank, normalize=normalize)
    for rows in query_blocks(queries, k):
        similarities, neighbours = find(queries[rows], k)
        for part in blocks(len(neighbours), VOTE_BLOCK):
            yield slice(rows.start + part.start, rows.start + part.stop), similarities[part], neighbours[part]


def _places(
    similarities: Tensor, labels: Tensor, targets: Tensor, ks: Sequence[int], temperature: Sequence[float], classes: int
) -> Tensor:
    """Places (K, T, n) of the targets (n,), given the neighbours' similarities and labels (n, k)."""
    places = torch.empty(len(ks), len(temperature), len(targets), dtype=torch.long)
    own, before = targets[:, None], torch.arange(classes) < targets[:, None]
    for i, k in enumerate(ks):
        for j, t in enumerate(temperature):
            scores = _scores(similarities[:, :k], labels[:, :k], t, classes)
            votes = scores.gather(1, own)
            ahead = (scores > votes) | ((scores == votes) & before)  # as a stable sort has it
            places[i, j] = ahead.sum(1).masked_fill(votes[:, 0] < 0, NO_PLACE)
    return places


def _scores(similarities: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Summed exp(similarity / T) of each class (n, num_classes), up to a factor a row; -1 where it got no vote."""
    weights = ((similarities.double() - similarities[:, :1].double()) / temperature).exp()  # cannot overflow
    scores = torch.zeros(len(labels), num_classes, dtype=torch.double).scatter_add_(1, labels, weights)
    voted = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels, True)
    return scores.masked_fill_(~voted, -1.0)


def _recall(exact: Tensor, found: Tensor) -> float:
    """Share of the exact neighbours (n, k) that were found (n, k)."""
    offset = torch.arange(len(exact))[:, None] * (1 + max(exact.max(), found.max()))  # each query has ids of its own
    return torch.isin(exact + offset, found + offset).double().mean().item()
