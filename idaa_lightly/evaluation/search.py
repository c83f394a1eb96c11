"""Nearest-neighbour search in a bank of features: exact with FAISS or PyTorch, or approximate with a FAISS index.

Beyond the inputs and the result, the exact search and its votes use at most 512 MiB of memory (`BUDGET`). This holds
for any number of features, in memory or memory-mapped, with up to 2048 dimensions, 1000 classes and k = 1000.
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

BUDGET = 2**29  # upper bound on extra memory in bytes; enforced by a test, not configurable
BLOCK = 2**24  # float32 elements per block: 64 MiB, or 32 768 rows of 512 dimensions
QUERY_BLOCK = 16_384  # queries per call; large, since FAISS uses BLAS only for large calls
TORCH_BLOCK = 512  # queries that PyTorch compares with a block of the bank at a time
GPU_K = 2048  # maximum number of neighbours of FAISS on a GPU
UNIT = 2e-6  # tolerance of unit length; float32 cannot get closer in 2048 dimensions
FAISS_FROM = 128_000  # query elements; below, FAISS does not use BLAS and PyTorch is faster
TRAIN_BYTES = 2**28  # size of the random subset of a bank that an index is trained on

Search = Callable[[Any, int], tuple[Tensor, Tensor]]
"""Function of queries (M, D) and k that returns similarities and bank rows (M, k) of the nearest, best first."""


def nearest(bank: Any, queries: Any, k: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """Find the k nearest features of the bank by an exact search.

    Args:
        bank: Features (N, D), a tensor or array, possibly memory-mapped.
        queries: Features (M, D).
        k: Number of neighbours. At most N are returned.
        normalize: Compare by cosine. False compares by the inner product.

    Returns:
        Similarities and row numbers in the bank, (M, k) each, best first, on the CPU.

    Raises:
        NonFiniteError: The features hold NaN or infinity.
    """
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
    """Convert features to float32, and normalise them to unit length if requested.

    Features that need no conversion are returned without a copy.

    Args:
        features: Features (N, D), a tensor or array.
        name: Name of the features in the error message.
        normalize: Normalise to unit length.

    Raises:
        NonFiniteError: The features hold NaN or infinity.
    """
    if (same := _as_it_is(features, normalize)) is not None:
        return same
    if isinstance(features, Tensor):
        rows = features.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    else:
        with np.errstate(over="ignore"):  # infinity raises an error below
            rows = torch.from_numpy(np.array(features, np.float32, order="C"))
    largest = torch.linalg.vector_norm(rows, float("inf"), dim=1, keepdim=True)
    bad = int((~largest.isfinite()).sum())
    if bad:
        raise NonFiniteError(
            f"{bad} of {len(rows)} rows of the {name} hold NaN or infinity: the training diverged, or half "
            "precision overflowed"
        )
    if normalize:
        rows /= largest.clamp_min(torch.finfo(rows.dtype).tiny)  # so that squares do not overflow
        F.normalize(rows, dim=1, out=rows)
    return rows


def faiss_index(bank: Any, description: str) -> Search:
    """Build an approximate FAISS index of a bank. The index holds the bank in its own format.

    Args:
        bank: Features (N, D), a tensor or array.
        description: FAISS index factory string, such as "IVF256,Flat" or "PQ64x4fs,RFlat". Search parameters may follow
            after a semicolon: "IVF256,Flat;nprobe=16" or "PQ64x4fs,RFlat;k_factor_rf=8".

    Returns:
        Search function. It raises DataError if a query has no neighbour at all.

    Raises:
        UsageError: FAISS is not installed, or it rejects the description for this bank.
    """
    if not faiss_available():
        raise UsageError(f'the index {description!r} needs FAISS: pip install "idaa-lightly[cpu]"')
    import faiss

    factory, _, settings = description.partition(";")
    parameters: Any = settings  # the annotation of FAISS lacks this overload
    count = min(len(bank), max(1, TRAIN_BYTES // (4 * bank.shape[1])))
    sample = np.sort(np.random.default_rng(0).choice(len(bank), count, replace=False))
    try:
        index = faiss.index_factory(bank.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        faiss.ParameterSpace().set_index_parameters(index, parameters)
        index.train(prepared(bank[sample], "bank").cpu().numpy())
        for rows in blocks(len(bank), BLOCK // bank.shape[1]):
            index.add(prepared(bank[rows], "bank").cpu().numpy())
        index.search(prepared(bank[sample[:1]], "bank").cpu().numpy(), 1)  # Some settings fail only now.
    except (RuntimeError, TypeError) as error:  # TypeError: a string that is not UTF-8
        reason = (
            re.sub(r"^.*\.cpp:\d+: (Error: '.*' failed: )?", "", str(error), flags=re.DOTALL).strip().partition("\n")[0]
        )
        raise UsageError(
            f"FAISS cannot build the index {description!r} for {len(bank)} features of {bank.shape[1]} dimensions: "
            f"{reason}; expected an index factory string, with settings after a semicolon, such as "
            "'IVF256,Flat;nprobe=16'"
        ) from error

    def search(queries: Any, k: int) -> tuple[Tensor, Tensor]:
        similarities, at = map(torch.from_numpy, index.search(prepared(queries, "queries").cpu().numpy(), k))
        empty = int((at[:, 0] < 0).sum())
        if empty:
            raise DataError(
                f"the index {description!r} found no neighbour of {empty} of {len(at)} queries: let it probe more "
                "lists (;nprobe=16), or build it with fewer lists"
            )
        return similarities.masked_fill(at < 0, -torch.inf), torch.where(at < 0, at[:, :1], at)  # weight 0

    return search


def _as_it_is(features: Any, normalize: bool) -> Tensor | None:
    """Return the features without a copy if the CPU search can use them unchanged, else None."""
    if isinstance(features, np.ndarray) and type(features) is not np.memmap:
        features = torch.from_numpy(features) if features.flags.writeable and features.dtype.isnative else None
    if not isinstance(features, Tensor) or features.dtype != torch.float32 or features.device.type != "cpu":
        return None
    lengths = torch.linalg.vector_norm(features.detach(), dim=1)
    ready = (lengths - 1).abs().amax() < UNIT if normalize and len(lengths) else lengths.isfinite().all()
    return features.detach() if ready and features.is_contiguous() else None


def blocks(length: int, size: int) -> list[slice]:
    """Split `length` rows into consecutive slices of at most `size` rows, and at least one.

    Args:
        length: Number of rows.
        size: Maximum number of rows per slice. Values below 1 count as 1.
    """
    size = max(1, size)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def query_blocks(count: int, dim: int, k: int) -> list[slice]:
    """Split queries into slices whose features and neighbours fit into a block.

    Args:
        count: Number of queries, M.
        dim: Dimension of the features, D.
        k: Number of neighbours per query.
    """
    return blocks(count, _queries_per_call(dim, k))


def _queries_per_call(dim: int, k: int) -> int:
    return min(QUERY_BLOCK, BLOCK // max(dim, 4 * k))


def faiss_available() -> bool:
    """Return True if FAISS can be imported. Warn if both faiss-cpu and faiss-gpu are installed."""
    installed = [name for name in ("faiss-cpu", "faiss-gpu") if _is_installed(name)]
    if len(installed) == 2:
        warnings.warn(
            "faiss-cpu and faiss-gpu are both installed and own the same module `faiss`: uninstall both, then "
            "install one",
            stacklevel=2,
        )
    return importlib.util.find_spec("faiss") is not None


def backend(count: int, dim: int, k: int, index: str | None = None) -> str:
    """Describe the search backend in one line, for logs and records.

    Args:
        count: Number of queries, M. They are assumed to be on the CPU.
        dim: Dimension of the features, D.
        k: Number of neighbours per query.
        index: FAISS index factory string, or None for an exact search.
    """
    if index is not None:
        import faiss

        return f"faiss {faiss.__version__}, index {index}, approximate"
    if faiss_available() and min(count, _queries_per_call(dim, k)) * dim < FAISS_FROM:
        return "torch, exact (faster than FAISS for so few queries)"
    if faiss_available():
        import faiss

        return f"faiss {faiss.__version__}, exact{', on the GPU' if _gpus() > 0 else ''}"
    return 'torch, exact (for FAISS: pip install "idaa-lightly[cpu]", or [gpu] with an NVIDIA GPU)'


def _gpus() -> int:
    import faiss

    return int(faiss.get_num_gpus())


def _faiss_search(block: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    import faiss  # after torch, so that both share one OpenMP runtime

    arrays = queries.cpu().numpy(), block.cpu().numpy(), k
    if _gpus() > 0 and k <= GPU_K:  # without a GPU, knn_gpu would abort the process
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
