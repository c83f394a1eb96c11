"""Estimate of how many whole rounds of seeds fit into a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from idaa_lightly.bench.ablate.rows import rows_of, trials_of
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.features import pick_device
from idaa_lightly.bench.run.cost import estimate, in_words
from idaa_lightly.bench.run.fitting import fit_context
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import make_parts, read_data, read_labelled, resolve
from idaa_lightly.bench.sweep.plan import place
from idaa_lightly.errors import UsageError

log = logging.getLogger(__name__)


def rounds_within(
    seconds: float,
    config: RunConfig,
    out: Path,
    seeds: Sequence[int],
    tune: Mapping[str, Sequence[str]],
    jobs: int,
) -> int:
    """Return how many seeds are estimated to fit into a time, with the trials before them. Finished runs take no time.

    Args:
        seconds: The time.
        config: Configuration of the augmentation.
        out: Directory of the runs.
        seeds: Seeds, in the order in which they are run.
        tune: Values to try by option of the method.
        jobs: Runs at a time. They are assumed not to slow each other down.

    Raises:
        UsageError: Not even one round fits.
    """
    rows, _ = rows_of(config)
    costs = {row.name: _seconds(row.config) for row in rows}
    trials = [(replace(trial, seed=seeds[0]), row.name) for row in rows for _, trial in trials_of(row, tune)] * bool(
        tune
    )
    spent = sum(_remaining(trials, costs, out)) / jobs
    tuning, count = spent, 0
    for seed in seeds:
        asked = [(replace(row.config, seed=seed), row.name) for row in rows]
        # The last row is the candidate, and that at equal compute takes as long.
        spent += (sum(_remaining(asked, costs, out)) + costs[rows[-1].name]) / jobs
        if spent > seconds:
            break
        count += 1
    each = (sum(costs.values()) + costs[rows[-1].name]) / jobs
    log.info(
        f"Budget {in_words(seconds)}: a round of one seed takes about {in_words(each)}"
        + (f", the trials about {in_words(tuning)}" if trials else "")
        + f". {count} of {len(seeds)} rounds fit."
    )
    if not count:
        raise UsageError(
            f"--budget is {in_words(seconds)}, but one round with its trials takes about {in_words(spent)}"
        )
    return count


def _remaining(asked: list[tuple[RunConfig, str]], costs: Mapping[str, float], out: Path) -> list[float]:
    """Return the seconds of each run that is not finished."""
    runs = place(asked, out) if asked else []
    return [costs[name] for run, (_, name) in zip(runs, asked, strict=True) if not run.finished]


def _seconds(config: RunConfig) -> float:
    """Estimate the seconds of a run from one real training step."""
    config = resolve(config)
    augmentation, data = make_augmentation(config), read_data(config, quiet=True)
    config = replace(config, image_size=data.image_size)
    parts = make_parts(config, augmentation, data, read_labelled(config, data))
    return sum(estimate(parts, fit_context(parts, pick_device())))
