"""Contrasts of an ablation with simultaneous confidence intervals that hold for few seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from idaa_lightly.bench.compare.comparison import CONFIDENCE


class Difference(NamedTuple):
    """Mean difference of two rows, with a confidence interval. Without an interval, there was one seed.

    Attributes:
        center: Mean difference.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    center: float
    low: float | None
    high: float | None


def residual_variance(values: Mapping[str, Sequence[float]]) -> tuple[float, int]:
    """Return the variance that remains after effects of rows and seeds are removed, and its degrees of freedom.

    It is the residual mean square of a randomised block design. An effect that a seed has on all rows, such as a lucky
    initialisation, does not count. For R rows and S seeds there are (R - 1)(S - 1) degrees of freedom.

    Args:
        values: Values by row, one per seed, the same seeds in all rows.
    """
    table = np.array(list(values.values()))
    residuals = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float((residuals**2).sum() / freedom) if freedom else 0.0, freedom


def differences(values: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]) -> list[Difference]:
    """Return the differences of pairs of rows. The 95 % intervals hold for all of them at once (Bonferroni).

    The variance is pooled over all rows; see `residual_variance`.

    Args:
        values: Values by row, one per seed, the same seeds in all rows.
        pairs: Names of two rows each; the second is subtracted from the first.
    """
    variance, freedom = residual_variance(values)
    seeds = len(next(iter(values.values())))
    half = None
    if freedom:
        quantile = stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / len(pairs), freedom)
        half = float(quantile * np.sqrt(2 * variance / seeds))
    centers = [float(np.mean(values[one]) - np.mean(values[other])) for one, other in pairs]
    return [
        Difference(center, *((None, None) if half is None else (center - half, center + half))) for center in centers
    ]


def sampling_error(share: float, images: int) -> float:
    """Return one standard error of an accuracy that comes from the choice of the test images.

    Args:
        share: Accuracy in [0, 1].
        images: Number of test images.
    """
    return float(np.sqrt(share * (1 - share) / images))
