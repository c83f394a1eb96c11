"""Differences of pairs of recipes, one by one or with intervals that hold for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from idaa_lightly.bench.ablate.statistics import differences
from idaa_lightly.bench.compare.comparison import difference
from idaa_lightly.bench.compare.groups import MEASURES, Group

Pair = tuple[str, str]


def differences_of(
    groups: Mapping[str, Group], pairs: Sequence[Pair], *, joint: bool
) -> dict[Pair, dict[str, float | None]]:
    """Return the differences of those pairs of recipes that were run, in the form in which `difference` returns them.

    Joint intervals are those of `idaa-bench ablate`: 95 % for all pairs at once (Bonferroni), with a variance pooled
    over all recipes of the pairs, without the common effect of each seed.

    Args:
        groups: Runs by recipe.
        pairs: Names of two recipes each; the second is subtracted from the first.
        joint: Joint intervals, of the seeds that all recipes of the pairs have. Without one, nothing is returned.
    """
    ready = [pair for pair in pairs if groups.keys() >= set(pair)]
    names = list(dict.fromkeys(name for pair in ready for name in pair))
    seeds = sorted(set.intersection(*(set(groups[name].records) for name in names))) if names else []
    if joint and not seeds:
        return {}
    found: dict[Pair, dict[str, float | None]] = {pair: {} for pair in ready}
    for measure in MEASURES:
        for one, other in ready:
            found[one, other] |= difference(measure, groups[one], groups[other])
        if not joint:
            continue
        values = {name: [100 * groups[name].records[seed]["last"][measure] for seed in seeds] for name in names}
        for pair, part in zip(ready, differences(values, ready), strict=True):
            ends = {"": part.center, "_low": part.low, "_high": part.high}
            found[pair] |= {f"{measure}_minus_baseline{end}": value for end, value in ends.items()}
            found[pair][f"{measure}_pairs"] = len(seeds)
    return found
