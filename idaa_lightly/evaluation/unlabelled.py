"""Quality of embeddings without labels: effective rank, alignment, uniformity and spread."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightly.utils.debug import std_of_l2_normalized
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly.errors import DataError, NonFiniteError

EPSILON = 1e-7  # added to each share: Garrido et al., ICML 2023, Eq. 1
PAIRS = 4096  # embeddings whose pairs `uniformity` compares at a time


def rankme(embeddings: Any) -> float:
    """Compute RankMe, the effective rank of embeddings: the exponential of the entropy of their singular values.

    A collapsed representation has 1. The largest value is min(N, D). Compare values of the same N and D only.

    Source: Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations
    by Their Rank", ICML 2023, Eqs. 1 and 2.

    Differs from the paper: singular values come from the Gram matrix in double precision, so that memory does not grow
    with N.

    Args:
        embeddings: Embeddings (N, D), not centred, a tensor or array.

    Raises:
        DataError: The shape is not (N, D) with N and D of 1 or more, or all embeddings are zero.
        NonFiniteError: Embeddings hold NaN or infinity.

    Example:
        >>> round(rankme(torch.eye(8)), 2), round(rankme(torch.ones(8, 8)), 2)
        (8.0, 1.0)
    """
    rows = _checked(embeddings).double()
    gram = rows.T @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.T
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    if not values.any():
        raise DataError("all embeddings are zero, so they have no effective rank: the network has collapsed")
    shares = values / values.sum() + EPSILON
    return math.exp(-(shares * shares.log()).sum().item())


def alignment(anchors: Any, positives: Any) -> float:
    """Compute alignment: the mean squared distance of normalised embeddings of two views of a sample, 0 to 4.

    Source: Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020, Sec. 4.1, with α = 2.

    Args:
        anchors: Embeddings (N, D) of a view. They are normalised here.
        positives: Embeddings (N, D) of another view of each sample.

    Raises:
        DataError: The shapes differ or are not (N, D).
        NonFiniteError: Embeddings hold NaN or infinity.

    Example:
        >>> alignment(torch.eye(4), torch.eye(4)), alignment(torch.eye(4), -torch.eye(4))
        (0.0, 4.0)
    """
    if anchors.shape != positives.shape:
        shapes = f"anchors have shape {tuple(anchors.shape)} and positives {tuple(positives.shape)}"
        raise DataError(f"{shapes}, but expected (N, D) twice")
    first, second = (F.normalize(_checked(part).double(), dim=1) for part in (anchors, positives))
    return (first - second).square().sum(1).mean().item()


def uniformity(embeddings: Any) -> float:
    """Compute uniformity: the logarithm of the mean Gaussian potential of all pairs of normalised embeddings.

    It is 0 for a collapsed representation, and about -4 for one that is spread out evenly in many dimensions.

    Source: Wang & Isola, ICML 2020, Sec. 4.1.2, with t = 2.

    Args:
        embeddings: Embeddings (N, D), N of 2 or more. They are normalised here.

    Raises:
        DataError: The shape is not (N, D), or N is less than 2.
        NonFiniteError: Embeddings hold NaN or infinity.

    Example:
        >>> round(uniformity(torch.eye(8)), 2), round(abs(uniformity(torch.ones(8, 8))), 2)
        (-4.0, 0.0)
    """
    rows = F.normalize(_checked(embeddings).double(), dim=1)
    if len(rows) < 2:
        raise DataError(f"got {len(rows)} embedding, but uniformity compares pairs: expected 2 or more")
    squares = rows.square().sum(1)  # 1, or 0 for an embedding of zeros
    total = sum(
        (4 * part @ rows.T - 2 * own[:, None] - 2 * squares).exp().sum().item()
        for part, own in zip(rows.split(PAIRS), squares.split(PAIRS), strict=True)
    )
    return math.log((total - len(rows)) / (len(rows) * (len(rows) - 1)))


def spread(embeddings: Any) -> float:
    """Compute the spread: the standard deviation of normalised embeddings, relative to that of an isotropic Gaussian.

    1 is full spread. Near 0 the representation has collapsed to a point.

    Source: Chen & He, "Exploring Simple Siamese Representation Learning", CVPR 2021, Sec. 4.1, by Lightly's
    `std_of_l2_normalized`, times √D.

    Args:
        embeddings: Embeddings (N, D), N of 2 or more. They are normalised here.

    Raises:
        DataError: The shape is not (N, D), or N is less than 2.
        NonFiniteError: Embeddings hold NaN or infinity.

    Example:
        >>> round(spread(torch.eye(8)), 2), round(spread(torch.ones(8, 8)), 2)
        (1.0, 0.0)
    """
    rows = _checked(embeddings)
    if len(rows) < 2:
        raise DataError(f"got {len(rows)} embedding, but a spread needs 2 or more")
    return float(std_of_l2_normalized(rows.double())) * math.sqrt(rows.shape[1])


def figures(embeddings: Any) -> dict[str, float]:
    """Return `rankme`, `uniformity` and `spread` of embeddings (N, D), by name."""
    return {"rankme": rankme(embeddings), "uniformity": uniformity(embeddings), "spread": spread(embeddings)}


def _checked(values: Any) -> Tensor:
    embeddings: Tensor = torch.as_tensor(values)
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise DataError(f"embeddings have shape {tuple(embeddings.shape)}, but expected (N, D), both 1 or more")
    if not embeddings.isfinite().all():
        raise NonFiniteError("embeddings hold NaN or infinity: the training diverged")
    return embeddings.detach()
