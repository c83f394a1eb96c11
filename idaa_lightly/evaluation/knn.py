"""Weighted k-nearest-neighbour classification, searched exactly by FAISS or, without it, by torch.

Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, Sec. 3.4;
equal to Lightly's `knn_predict` up to ties.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly.errors import DataError, NonFiniteError, UsageError

BANK_BLOCK = 65_536  # rows of the bank in float32 at a time: 128 MiB at 512 dimensions
QUERY_BLOCK = 16_384  # many queries a call: FAISS uses BLAS only for large ones
GPU_K = 2048  # the most neighbours that FAISS finds on a GPU
FAISS_FROM = 128_000  # query elements; below it FAISS goes without BLAS and torch is faster


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
    memory-mapped arrays); beyond the inputs, memory holds a block of the bank and k neighbours per query.

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
    labels = _tensor(bank_labels).long().cpu()
    if len(bank.shape) != 2 or len(queries.shape) != 2 or bank.shape[1] != queries.shape[1] or not len(bank):
        raise DataError(
            f"bank has shape {tuple(bank.shape)} and queries {tuple(queries.shape)}, but expected (N, D) and (M, D) "
            "with N of 1 or more"
        )
    if labels.shape != (len(bank),) or labels.min() < 0:
        raise DataError(
            f"bank_labels has shape {tuple(labels.shape)} and minimum {labels.min() if labels.numel() else None}, "
            f"but expected ({len(bank)},) with classes from 0"
        )
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.max() >= classes:
        raise DataError(f"a label is {labels.max()}, but num_classes is {classes}")
    if k < 1 or not temperature > 0:
        raise UsageError(f"k is {k} and temperature {temperature}, but k must be 1 or more and temperature above 0")
    if k > len(bank):
        warnings.warn(f"k is {k}, but the bank has {len(bank)} features: using {len(bank)}", stacklevel=2)
    ranked = torch.empty(len(queries), classes, dtype=torch.long)
    for rows in _blocks(len(queries), QUERY_BLOCK):
        similarities, neighbours = nearest(bank, queries[rows], min(k, len(bank)))
        ranked[rows] = vote(similarities, labels[neighbours], temperature, classes)
    return ranked


def nearest(bank: Any, queries: Any, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and row numbers of the k nearest features of the bank, (M, k) each, best first."""
    queries = _normalised(queries, "queries")
    use_faiss = faiss_available() and queries.numel() >= FAISS_FROM and queries.device.type == "cpu"
    search = _faiss_search if use_faiss else _torch_search
    similarities = torch.empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.long)
    for rows in _blocks(len(bank), BANK_BLOCK):
        block = _normalised(bank[rows], "bank").to(queries.device)
        found, at = search(block, queries, min(k, len(block)))
        similarities = torch.cat([similarities, found.cpu()], 1)
        indices = torch.cat([indices, at.cpu() + rows.start], 1)
        similarities, kept = similarities.topk(min(k, similarities.shape[1]), 1)
        indices = indices.gather(1, kept)
    return similarities, indices


def vote(similarities: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Class indices (M, num_classes) by summed exp(similarity / T), best first; -1 where a class got no vote."""
    weights = ((similarities.double() - similarities[:, :1].double()) / temperature).exp()  # cannot overflow
    scores = torch.zeros(len(labels), num_classes, dtype=torch.double).scatter_add_(1, labels, weights)
    voted = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels, True)
    order = scores.masked_fill(~voted, -1.0).argsort(dim=1, descending=True, stable=True)
    return order.masked_fill(~voted.gather(1, order), -1)


def faiss_available() -> bool:
    """Whether FAISS can be imported; warns where faiss-cpu and faiss-gpu overwrite each other."""
    installed = [name for name in ("faiss-cpu", "faiss-gpu") if _is_installed(name)]
    if len(installed) == 2:
        warnings.warn(
            "faiss-cpu and faiss-gpu are both installed and own the same module `faiss`: uninstall both, then "
            "install one",
            stacklevel=2,
        )
    return importlib.util.find_spec("faiss") is not None


def backend(elements: int) -> str:
    """One line on what searches for queries of M · D `elements` on the CPU, for logs and records."""
    if faiss_available() and elements < FAISS_FROM:
        return "torch, exact (faster than FAISS for so few queries)"
    if faiss_available():
        import faiss

        return f"faiss {faiss.__version__}, exact{', on the GPU' if faiss.get_num_gpus() > 0 else ''}"
    return 'torch, exact (for FAISS: pip install "idaa-lightly[cpu]", or [gpu] with an NVIDIA GPU)'


def _faiss_search(block: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    import faiss  # after torch: they then share one OpenMP runtime

    arrays = queries.numpy(), block.numpy(), k
    if faiss.get_num_gpus() > 0 and k <= GPU_K:  # without a GPU, knn_gpu would end the process
        found, at = faiss.knn_gpu(faiss.StandardGpuResources(), *arrays, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        found, at = faiss.knn(*arrays, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(found), torch.from_numpy(at)


def _torch_search(block: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    pieces = [(part @ block.T).topk(k, 1) for part in queries.split(1024)]
    return torch.cat([piece.values for piece in pieces]), torch.cat([piece.indices for piece in pieces])


def _normalised(features: Any, name: str) -> Tensor:
    tensor = _tensor(features).detach().float().contiguous()
    bad = int((~tensor.isfinite()).any(1).sum())
    if bad:
        raise NonFiniteError(
            f"{bad} of {len(tensor)} rows of the {name} hold NaN or infinity: the training diverged, or half "
            "precision overflowed"
        )
    largest = tensor.abs().amax(1, keepdim=True).clamp_min(torch.finfo(tensor.dtype).tiny)  # squares must not overflow
    return F.normalize(tensor / largest, dim=1)


def _tensor(values: Any) -> Tensor:
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # of a block: torch warns of arrays that it could not write to
    return torch.as_tensor(values)


def _blocks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
