"""Execution of an ablation: trials, whole rounds of seeds, and the results of their records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from idaa_lightly.bench.ablate import Metric
from idaa_lightly.bench.ablate.rows import Row, at_equal_compute, rows_of, trials_of, with_options
from idaa_lightly.bench.ablate.schema import SCHEMA, Ablation, RowResult, Trial
from idaa_lightly.bench.ablate.statistics import sampling_error
from idaa_lightly.bench.ablate.verdict import contrasts_of, paragraph
from idaa_lightly.bench.compare.comparison import differing, non_default
from idaa_lightly.bench.compare.groups import MEASURES
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.record import fit_flops, read_record, training_flops
from idaa_lightly.bench.run.evaluation import MEASURED
from idaa_lightly.bench.run.setup import read_data, read_labelled
from idaa_lightly.bench.schema import Record
from idaa_lightly.bench.sweep.plan import Run, place
from idaa_lightly.errors import UsageError
from idaa_lightly.files import atomic_write

log = logging.getLogger(__name__)
Execute = Callable[[list[Run]], None]
"""Function that executes runs and returns when all are finished."""


def ablate(
    config: RunConfig,
    out: Path,
    execute: Execute,
    *,
    seeds: Sequence[int],
    metric: Metric | None = None,
    tune: Mapping[str, Sequence[str]] | None = None,
) -> Ablation:
    """Run an augmentation with everything that it has to be compared with, and judge it.

    Args:
        config: Configuration of the augmentation. Its seed is ignored.
        out: Directory of the runs. Finished runs in it are not repeated. The configurations of the rows are written to
            its subdirectory rows.
        execute: Function that executes runs.
        seeds: Seeds of the final runs. The first is also that of the trials.
        metric: Metric that decides. Default: kNN accuracy, or RankMe without labels.
        tune: Values to try by option of the method. Every row gets all trials.

    Raises:
        UsageError: An option cannot be used, the metric needs labels that are missing, or operations are not counted.
    """
    metric = deciding(metric, config)
    rows, missing = rows_of(config)
    trials: list[Trial] = []
    if tune:
        rows, trials = tuned(rows, out, execute, tune, metric, seeds[0])
    compute, candidate = compute_row(rows, seeds[0], out, execute)
    rows.append(compute)
    write_rows(rows, out / "rows")
    runs = runs_of(rows, seeds, out)
    execute(runs)
    own = [non_default(row.config) for row in rows]
    records = [read_record(run.folder) for run in runs]
    by_row = [(runs[number :: len(rows)], records[number :: len(rows)]) for number in range(len(rows))]
    common = {key for key, value in own[0].items() if all(other.get(key) == value for other in own)}
    options = [" ".join(f"{key}={value}" for key, value in part.items() if key not in common) for part in own]
    results = [_result(row, text, *made, metric, out) for row, text, made in zip(rows, options, by_row, strict=True)]
    notes = missing + [note for mark in ("commit", "plugin files") if (note := differing(mark, records))]
    return _judged(config, metric, seeds, results, trials, notes, candidate)


def compute_row(rows: list[Row], seed: int, out: Path, execute: Execute) -> tuple[Row, Record]:
    """Run the method alone and the candidate once. Return the row at equal compute, and the candidate's record."""
    first = runs_of([row for row in rows if row.kind in ("alone", "candidate")], [seed], out)
    execute(first)
    alone, candidate = (read_record(run.folder) for run in first)
    per_epoch = training_flops(alone) / alone["config"]["epochs"]
    if not per_epoch:
        raise UsageError(f"{first[0].folder} has no count of operations, so nothing can be compared at equal compute")
    return at_equal_compute(rows[0], per_epoch, fit_flops(candidate) + training_flops(candidate)), candidate


def deciding(metric: Metric | None, config: RunConfig) -> Metric:
    """Return the metric that decides: the given one, or kNN accuracy, or RankMe without labels.

    Raises:
        UsageError: The metric needs labels that are missing.
    """
    labelled = read_labelled(config, read_data(config, quiet=True)) is not None
    if metric in MEASURES and not labelled:
        raise UsageError(f"--metric is {metric}, but the images have no labels: choose rankme, or add --eval-data")
    return metric or ("knn" if labelled else "rankme")


def write_rows(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write the configuration of each row as a file for `idaa-bench run --config`. Return the files."""
    made = []
    for row in rows:
        path = out / f"{''.join(c if c.isalnum() else '-' for c in row.name.lower())}.toml"
        with atomic_write(path) as temporary:
            temporary.write_text(row.config.to_toml(), encoding="utf-8")
        made.append(path)
    return made


def tuned(
    rows: list[Row], out: Path, execute: Execute, tune: Mapping[str, Sequence[str]], metric: Metric, seed: int
) -> tuple[list[Row], list[Trial]]:
    """Run all trials of all rows. Return the rows with their best options, and the trials."""
    asked = [(row, chosen, replace(config, seed=seed)) for row in rows for chosen, config in trials_of(row, tune)]
    where = ", on the validation images" * (metric in MEASURES)
    log.info(f"{len(asked)} trials: {len(asked) // len(rows)} for each of {len(rows)} rows{where}.")
    runs = place([(config, f"trial of {row.name}") for row, _, config in asked], out)
    execute(runs)
    values = [_value(read_record(run.folder), metric) for run in runs]
    chosen_rows, trials = [], []
    for row in rows:
        own = [number for number, (other, *_) in enumerate(asked) if other is row]
        best = max(own, key=lambda number: values[number])
        chosen_rows.append(replace(row, config=with_options(row, asked[best][1])))
        trials += [
            Trial(row=row.name, options=asked[number][1], value=values[number], chosen=number == best) for number in own
        ]
    return chosen_rows, trials


def runs_of(rows: Sequence[Row], seeds: Sequence[int], out: Path) -> list[Run]:
    """Return a run for each seed and row, all rows of a seed before the next seed."""
    return place([(replace(row.config, seed=seed), row.name) for seed in seeds for row in rows], out)


def _value(record: Record, metric: Metric) -> float:
    """Return a figure after the last epoch, in percent for accuracies."""
    return record["last"][metric] * (100 if metric in MEASURES else 1)


def _result(
    row: Row, options: str, runs: Sequence[Run], records: Sequence[Record], metric: Metric, out: Path
) -> RowResult:
    names: tuple[Metric, ...] = (*MEASURES, "rankme")
    return RowResult(
        name=row.name,
        kind=row.kind,
        adds=row.adds,
        aug=row.config.aug,
        options=options,
        epochs=records[0]["config"]["epochs"],
        values=[_value(record, metric) for record in records],
        others={
            name: mean(_value(record, name) for record in records)
            for name in names
            if name != metric and name in records[0]["last"]
        },
        flops=mean(fit_flops(record) + training_flops(record) for record in records),
        folders=[run.folder.relative_to(out).as_posix() for run in runs],
    )


def _judged(
    config: RunConfig,
    metric: Metric,
    seeds: Sequence[int],
    rows: list[RowResult],
    trials: list[Trial],
    notes: list[str],
    record: Record,
) -> Ablation:
    data = record.get("eval_data", record["data"])
    images = data["test"] if metric in MEASURES else min(MEASURED, record["data"]["train"])
    result = Ablation(
        schema=SCHEMA,
        method=config.method,
        aug=config.aug,
        data=config.data,
        metric=metric,
        evaluate_on=config.evaluate_on,
        seeds=list(seeds),
        rows=rows,
        contrasts=contrasts_of(rows),
        trials=trials,
        images=images,
        verdict="",
        notes=notes,
    )
    if metric in MEASURES:
        candidate = next(row for row in rows if row["kind"] == "candidate")
        result["sampling_error"] = 100 * sampling_error(mean(candidate["values"]) / 100, images)
    result["verdict"] = paragraph(result)
    return result
