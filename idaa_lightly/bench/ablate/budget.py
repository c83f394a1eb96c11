"""Estimate of how many whole rounds of seeds fit into a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from idaa_lightly.bench.ablate import Metric
from idaa_lightly.bench.ablate.rows import COMPUTE, rows_of, trials_of
from idaa_lightly.bench.ablate.study import compute_row, deciding, runs_of, tuned
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.features import pick_device
from idaa_lightly.bench.run.cost import estimate, in_words
from idaa_lightly.bench.run.fitting import fit_context
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import make_parts, read_data, read_labelled, resolve
from idaa_lightly.bench.sweep.plan import Run, place
from idaa_lightly.errors import UsageError

log = logging.getLogger(__name__)


def rounds_within(
    seconds: float,
    config: RunConfig,
    out: Path,
    seeds: Sequence[int],
    tune: Mapping[str, Sequence[str]],
    jobs: int,
    metric: Metric | None = None,
) -> int:
    """Return how many seeds are estimated to fit into a time, with the trials before them. Finished runs take no time.

    Args:
        seconds: The time.
        config: Configuration of the augmentation.
        out: Directory of the runs.
        seeds: Seeds, in the order in which they are run.
        tune: Values to try by option of the method.
        jobs: Runs at a time. They are assumed not to slow each other down.
        metric: See `ablate`.

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
    costs[COMPUTE] = next(costs[row.name] for row in rows if row.kind == "candidate")
    if trials and not tuning:
        rows, _ = tuned(rows, out, _nothing, tune, deciding(metric, config), seeds[0])
    first = runs_of([row for row in rows if row.kind in ("alone", "candidate")], seeds[:1], out)
    known = all(run.finished for run in first)  # Before that, nothing tells the epochs of the row at equal compute.
    if known:
        rows.append(compute_row(rows, seeds[0], out, _nothing)[0])
    for seed in seeds:
        asked = [(replace(row.config, seed=seed), row.name) for row in rows]
        spent += (sum(_remaining(asked, costs, out)) + costs[COMPUTE] * (not known)) / jobs
        if spent > seconds:
            break
        count += 1
    each = sum(costs.values()) / jobs
    log.info(
        f"Budget {in_words(seconds)}: a round of one seed takes about {in_words(each)}"
        + (f", the trials about {in_words(tuning)}" if trials else "")
        + f". {count} of {len(seeds)} rounds fit."
    )
    if not count:
        raise UsageError(
            f"--budget is {in_words(seconds)}, but one round with its trials takes about {in_words(spent)}: raise it"
        )
    return count


def _nothing(runs: Sequence[Run]) -> None:
    """Execute runs that are finished."""


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
