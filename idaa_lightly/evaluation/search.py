"""The nearest features of a bank: exactly, by FAISS or torch, or approximately, by an index of FAISS.

Memory: beyond the inputs and the result, the exact search and its votes need 512 MiB at most (`BUDGET`), for a bank and
queries of any length, in memory or memory-mapped, with up to 2048 dimensions, 1000 classes and k = 1000.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly.errors import DataError, NonFiniteError, UsageError

BUDGET = 2**29  # bytes; a promise that a test keeps, not a switch
BLOCK = 2**24  # elements in float32 at a time, 64 MiB: 32 768 rows of 512 dimensions
QUERY_BLOCK = 16_384  # many queries a call: FAISS uses BLAS only for large ones
TORCH_BLOCK = 512  # queries that torch compares with a block of the bank at a time
GPU_K = 2048  # the most neighbours that FAISS finds on a GPU
UNIT = 2e-6  # how far from 1 a length may be: float32 does not come nearer in 2048 dimensions
FAISS_FROM = 128_000  # query elements; below it FAISS goes without BLAS and torch is faster
TRAIN_BYTES = 2**28  # of the random part of a bank that an index is trained on

Search = Callable[[Any, int], tuple[Tensor, Tensor]]  # queries and k to similarities and rows of the bank, best first


def nearest(bank: Any, queries: Any, k: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """Similarities and row numbers of the exactly k nearest features of the bank, (M, k) each, best first."""
    queries = prepared(queries, "queries", normalize=normalize)
    use_faiss = faiss_available() and queries.numel() >= FAISS_FROM and (queries.device.type == "cpu" or _gpus() > 0)
    search = _faiss_search if use_faiss else _torch_search
    similarities = torch.empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.long)
    whole = _as_it_is(bank, normalize) is not None
    for rows in blocks(len(bank), len(bank) if whole and use_faiss else BLOCK // bank.shape[1]):
        block = prepared(bank[rows], "bank", normalize=normalize)
        found, at = search(block.to(queries.device), queries, min(k, len(block)))
        if not rows.start:
            similarities, indices = found.cpu(), at.cpu()
            continue
        similarities = torch.cat([similarities, found.cpu()], 1)
        indices = torch.cat([indices, at.cpu() + rows.start], 1)
        similarities, kept = similarities.topk(min(k, similarities.shape[1]), 1)
        indices = indices.gather(1, kept)
    return similarities, indices


def prepared(features: Any, name: str, *, normalize: bool = True) -> Tensor:
    """Features in float32, of unit length where asked: a copy, or themselves; refuses NaN and infinity by name."""
    if (same := _as_it_is(features, normalize)) is not None:
        return same
    if isinstance(features, Tensor):
        rows = features.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    else:
        with np.errstate(over="ignore"):  # infinity is refused below
            rows = torch.from_numpy(np.array(features, np.float32, order="C"))
    largest = torch.linalg.vector_norm(rows, float("inf"), dim=1, keepdim=True)
    bad = int((~largest.isfinite()).sum())
    if bad:
        raise NonFiniteError(
            f"{bad} of {len(rows)} rows of the {name} hold NaN or infinity: the training diverged, or half "
            "precision overflowed"
        )
    if normalize:
        rows /= largest.clamp_min(torch.finfo(rows.dtype).tiny)  # squares must not overflow
        F.normalize(rows, dim=1, out=rows)
    return rows


def faiss_index(bank: Any, description: str) -> Search:
    """Puts a bank into an approximate index of FAISS, which holds it in the index's own format.

    Args:
        bank: features (N, D), tensor or array.
        description: a string of FAISS's index factory, "IVF256,Flat" or "PQ64x4fs,RFlat", and after a semicolon what
            to set for the search, "IVF256,Flat;nprobe=16" or "PQ64x4fs,RFlat;k_factor_rf=8".

    Returns:
        The search. It raises DataError where a query finds nothing at all.

    Raises:
        UsageError: FAISS is not installed, or it refuses the description for this bank.
    """
    if not faiss_available():
        raise UsageError(f'the index {description!r} needs FAISS: pip install "idaa-lightly[cpu]"')
    import faiss

    factory, _, settings = description.partition(";")
    parameters: Any = settings  # FAISS's annotation has another overload only
    count = min(len(bank), max(1, TRAIN_BYTES // (4 * bank.shape[1])))
    sample = np.sort(np.random.default_rng(0).choice(len(bank), count, replace=False))
    try:
        index = faiss.index_factory(bank.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        faiss.ParameterSpace().set_index_parameters(index, parameters)
        index.train(prepared(bank[sample], "bank").cpu().numpy())
        for rows in blocks(len(bank), BLOCK // bank.shape[1]):
            index.add(prepared(bank[rows], "bank").cpu().numpy())
    except RuntimeError as error:
        reason = re.sub(r"^.*\.cpp:\d+: (Error: '.*' failed: )?", "", str(error), flags=re.DOTALL).strip()
        raise UsageError(
            f"FAISS makes no index {description!r} for {len(bank)} features of {bank.shape[1]} dimensions: {reason}; "
            "expected a string of its index factory, and settings after a semicolon, such as 'IVF256,Flat;nprobe=16'"
        ) from error

    def search(queries: Any, k: int) -> tuple[Tensor, Tensor]:
        similarities, at = map(torch.from_numpy, index.search(prepared(queries, "queries").cpu().numpy(), k))
        empty = int((at[:, 0] < 0).sum())
        if empty:
            raise DataError(
                f"the index {description!r} finds no neighbour of {empty} of {len(at)} queries: let it probe more "
                "lists (;nprobe=16), or make fewer"
            )
        return similarities.masked_fill(at < 0, -torch.inf), torch.where(at < 0, at[:, :1], at)  # no vote

    return search


def _as_it_is(features: Any, normalize: bool) -> Tensor | None:
    """The features without a copy, where they are in memory just as the search on the CPU wants them."""
    if isinstance(features, np.ndarray) and type(features) is not np.memmap and features.flags.writeable:
        features = torch.from_numpy(features)
    if not isinstance(features, Tensor) or features.dtype != torch.float32 or features.device.type != "cpu":
        return None
    lengths = torch.linalg.vector_norm(features.detach(), dim=1)
    ready = (lengths - 1).abs().amax() < UNIT if normalize and len(lengths) else lengths.isfinite().all()
    return features.detach() if ready and features.is_contiguous() else None


def blocks(length: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` rows, 1 or more."""
    size = max(1, size)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def query_blocks(queries: Any, k: int) -> list[slice]:
    """Slices of the queries whose features and neighbours fit into a block."""
    return blocks(len(queries), min(QUERY_BLOCK, BLOCK // max(queries.shape[1], 4 * k)))


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


def backend(elements: int, index: str | None = None) -> str:
    """One line on what searches for queries of M · D `elements` on the CPU, for logs and records."""
    if index is not None:
        import faiss

        return f"faiss {faiss.__version__}, index {index}, approximate"
    if faiss_available() and elements < FAISS_FROM:
        return "torch, exact (faster than FAISS for so few queries)"
    if faiss_available():
        import faiss

        return f"faiss {faiss.__version__}, exact{', on the GPU' if _gpus() > 0 else ''}"
    return 'torch, exact (for FAISS: pip install "idaa-lightly[cpu]", or [gpu] with an NVIDIA GPU)'


def _gpus() -> int:
    import faiss

    return int(faiss.get_num_gpus())


def _faiss_search(block: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    import faiss  # after torch: they then share one OpenMP runtime

    arrays = queries.cpu().numpy(), block.cpu().numpy(), k
    if _gpus() > 0 and k <= GPU_K:  # without a GPU, knn_gpu would end the process
        found, at = faiss.knn_gpu(faiss.StandardGpuResources(), *arrays, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        found, at = faiss.knn(*arrays, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(found), torch.from_numpy(at)


def _torch_search(block: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    with torch.autocast(queries.device.type, enabled=False):  # half-precision similarities would change the ranks
        pieces = [(part @ block.T).topk(k, 1) for part in queries.split(TORCH_BLOCK)]
    return torch.cat([piece.values for piece in pieces]), torch.cat([piece.indices for piece in pieces])


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
