"""The contrasts of an ablation, and the paragraph that follows from them by fixed rules."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from idaa_lightly.bench.ablate.schema import Ablation, ContrastResult, RowResult
from idaa_lightly.bench.ablate.statistics import differences
from idaa_lightly.bench.compare.text import ALL_TITLES

ENOUGH = 5
"""Seeds that a verdict needs."""


def of_kind(rows: Sequence[RowResult], kind: str) -> list[RowResult]:
    """Return the rows of a kind."""
    return [row for row in rows if row["kind"] == kind]


def strongest(rows: Sequence[RowResult]) -> RowResult | None:
    """Return the control with the highest mean. None without controls."""
    return max(of_kind(rows, "control"), key=lambda row: mean(row["values"]), default=None)


def contrasts_of(rows: Sequence[RowResult]) -> list[ContrastResult]:
    """Return the differences of the candidate to the method alone, the strongest control, and equal compute.

    Which contrasts are judged is fixed before any run. The strongest control is the one with the highest mean, which
    favours the control.
    """
    (candidate,) = of_kind(rows, "candidate")
    control = strongest(rows)
    compared = [*of_kind(rows, "alone"), *([control] if control else []), *of_kind(rows, "compute")]
    values = {row["folders"][0]: row["values"] for row in rows}  # Rows with the same runs count once.
    found = differences(values, [(candidate["folders"][0], other["folders"][0]) for other in compared])
    return [
        ContrastResult(name=other["name"], center=part.center, low=part.low, high=part.high)
        for other, part in zip(compared, found, strict=True)
    ]


def in_words(contrast: ContrastResult, unit: str, *, strongest: bool) -> str:
    """Return a contrast in words: its figures, and what its interval says.

    Args:
        contrast: The contrast.
        unit: Unit of its figures.
        strongest: True if the contrast is with the strongest of several controls. That one was chosen by the same
            figures, so an interval below 0 is no finding.
    """
    if contrast["low"] is None or contrast["high"] is None:
        return f"{contrast['center']:+.2f}{unit} to"
    found = {1: "above", -1: "not above" if strongest else "below", 0: "not told apart from"}[sign(contrast)]
    return f"{contrast['center']:+.2f}{unit} [{contrast['low']:+.2f}, {contrast['high']:+.2f}], {found}"


def sign(contrast: ContrastResult) -> int:
    """Return 1 if the whole interval is above 0, -1 if it is below, else 0."""
    low, high = contrast["low"], contrast["high"]
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def paragraph(result: Ablation) -> str:
    """Return the result of an ablation in words, by fixed rules."""
    rows, contrasts, seeds = result["rows"], result["contrasts"], result["seeds"]
    (candidate,) = of_kind(rows, "candidate")
    unit = " points" if "sampling_error" in result else ""
    controls = {row["name"] for row in of_kind(rows, "control")}
    words = (in_words(item, unit, strongest=item["name"] in controls) for item in contrasts)
    listed = "; ".join(f"{text} {item['name']!r}" for text, item in zip(words, contrasts, strict=True))
    images = result["evaluate_on"] if unit else "training"
    many = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}, {candidate['epochs']} epoch{'s' * (candidate['epochs'] != 1)}"
    parts = [
        f"{result['method']} × {result['aug']} on {result['data']}, {many}: {ALL_TITLES[result['metric']]} is "
        f"{mean(candidate['values']):.2f} on {result['images']} {images} images after the last epoch.",
        f"The differences are {listed}.",
        _judgement(result, candidate),
    ]
    intervals = contrasts[0]["low"] is not None
    if intervals:
        parts.append(
            "These are simultaneous 95 % intervals, with a variance pooled over all rows and seeds, without the common "
            "effect of each seed."
        )
    if "sampling_error" in result:
        parts.append(
            f"All runs share the {result['evaluate_on']} images, whose choice alone has a standard error of "
            f"{result['sampling_error']:.2f} points for one accuracy." + " The intervals do not contain it." * intervals
        )
    return " ".join(parts)


def _judgement(result: Ablation, candidate: RowResult) -> str:
    """Return the verdict. It needs `ENOUGH` seeds."""
    contrasts, count = result["contrasts"], len(result["seeds"])
    if count < ENOUGH:
        return f"Not enough seeds for a verdict: {count} of {ENOUGH}."
    alone, compute = contrasts[0], contrasts[-1]
    control = contrasts[1] if len(contrasts) == 3 else None
    helps = {
        1: "It helps at equal epochs",
        0: "No effect is shown at equal epochs",
        -1: "It hurts at equal epochs",
    }[sign(alone)]
    if sign(alone) == 1 and control is None:
        helps += ", but it declares no controls, so nothing says which part of it helps"
    elif sign(alone) == 1 and control is not None:
        helps += (
            f", and no control explains the gain: it comes from the {candidate['adds']}"
            if sign(control) == 1
            else f", but is not above {control['name']!r}: the gain is not shown to come from the {candidate['adds']}"
        )
    worth = {
        1: "It also wins at equal compute" if sign(alone) == 1 else "It wins at equal compute",
        0: "At equal compute, it is not told apart from the method alone",
        -1: "At equal compute, the method alone is better",
    }[sign(compute)]
    return f"Verdict: {helps}. {worth}."
