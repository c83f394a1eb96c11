"""Differences of recipes with confidence intervals that hold for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from idaa_lightly.bench.ablate.statistics import differences
from idaa_lightly.bench.compare.groups import MEASURES, Group


def joint_differences(groups: Mapping[str, Group], pairs: Sequence[tuple[str, str]]) -> list[dict[str, float | None]]:
    """Return the differences of pairs of recipes in points, in the form of `compare.groups.difference`.

    The intervals are those of `idaa-bench ablate`: 95 % for all pairs at once (Bonferroni), with a variance pooled over
    all recipes of the pairs, without the common effect of each seed.

    Args:
        groups: Runs by recipe. Only seeds that all recipes of the pairs have are used.
        pairs: Names of two recipes each; the second is subtracted from the first.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    seeds = sorted(set.intersection(*(set(groups[name].records) for name in names)))
    found: list[dict[str, float | None]] = [{} for _ in pairs]
    for measure in MEASURES:
        values = {name: [100 * groups[name].records[seed]["last"][measure] for seed in seeds] for name in names}
        for numbers, part in zip(found, differences(values, pairs), strict=True):
            key = f"{measure}_minus_baseline"
            numbers |= {
                key: part.center,
                f"{key}_low": part.low,
                f"{key}_high": part.high,
                f"{measure}_pairs": len(seeds),
            }
    return found
