"""A comparison as text: for the terminal and a README, a spreadsheet, or a paper."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from idaa_lightly.bench.compare.groups import BASELINE, Comparison, Measure, Unlabelled

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
TITLES: dict[Measure, str] = {"knn": "kNN", "knn_projection": "kNN on the projection", "linear": "linear"}
UNLABELLED_TITLES: dict[Unlabelled, str] = {
    "rankme": "RankMe",
    "uniformity": "uniformity",
    "alignment": "alignment",
    "embedding_spread": "spread",
}
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$",
    "−": "$-$", "–": "--", "<": "$<$", ">": "$>$",
})  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table of a comparison.

    Attributes:
        key: Name for programs and files, such as "knn_difference".
        title: Header for people, such as "Δ kNN [95 %]".
        text: From a row of the comparison to the text of its cell.
        number: The entry of the row that the column is sorted by. Empty for columns of words.
        measure: The measure whose difference to the baseline the column shows, if any.
    """

    key: str
    title: str
    text: Callable[[Row], str]
    number: str = ""
    measure: Measure | None = None


def columns(comparison: Comparison) -> list[Column]:
    """Return the columns that are not empty in all rows. Figures without labels are shown if a row has no accuracy."""
    first, against = comparison.rows[0], comparison.against
    to = "" if against == BASELINE else f" to {against}"
    budgets = {row["budget_flops"] for row in comparison.rows}
    budget = next(iter(budgets)) if len(budgets) == 1 else None
    at = f"at {quantity(budget)}" if len(budgets) == 1 else "at equal FLOPs"
    names = list(first)[: list(first).index("seeds") + 1]
    every = [
        *(Column(name, name, partial(_word, name), name * (name == "seeds")) for name in names),
        *(
            Column(measure, f"{title}, %", partial(_spread, measure), f"{measure}_mean")
            for measure, title in TITLES.items()
        ),
        *(
            Column(name, title, partial(_spread, name), f"{name}_mean")
            for name, title in UNLABELLED_TITLES.items()
            if any(row["knn_mean"] is None for row in comparison.rows)
        ),
        *(difference_column(measure, to) for measure in ("knn", "linear")),
        Column("train_s", "training, s", partial(_spread, "train_s", digits=1), "train_s_mean"),
        Column("time_relative", f"× {against}", partial(_ratio, "time_relative"), "time_relative"),
        Column("images_per_s", "images/s", lambda row: f"{row['images_per_s']:.0f}", "images_per_s"),
        Column("flops", "FLOPs", lambda row: quantity(row["flops"]), "flops"),
        Column("flops_relative", f"FLOPs × {against}", partial(_ratio, "flops_relative"), "flops_relative"),
        Column("knn_at_budget", f"kNN {at}, %", lambda row: _at_budget(row, budget), "knn_at_budget_mean"),
    ]
    return [column for column in every if any(column.text(row) for row in comparison.rows)]


def difference_column(measure: Measure, to: str = "") -> Column:
    """Return the column of the differences of a measure."""
    title, number = f"Δ {TITLES[measure]}{to} [95 %]", f"{measure}_minus_baseline"
    return Column(f"{measure}_difference", title, lambda row: difference_in_words(row, measure), number, measure)


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of text."""
    shown = columns(comparison)
    return [column.title for column in shown], [[column.text(row) for column in shown] for row in comparison.rows]


def to_markdown(comparison: Comparison) -> str:
    """Return a table in Markdown with its notes, for a README."""
    table = markdown(*cells(comparison))
    return "\n\n".join([table, f"All groups: {comparison.shared}.", *comparison.notes]) + "\n"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_latex(comparison: Comparison) -> str:
    """Return a table for a paper, which needs the package booktabs."""
    header, rows = cells(comparison)
    lines = [r" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in [header, *rows]]
    comments = [f"% {note}" for note in (f"All groups: {comparison.shared}.", *comparison.notes)]
    begin = rf"\begin{{tabular}}{{{'l' * len(header)}}}"
    body = [begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*comments, *body]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Return numbers with all their digits, empty where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, comparison.rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(comparison.rows)
    return text.getvalue()


def _word(name: str, row: Row) -> str:
    return str(row[name])


def _spread(name: str, row: Row, digits: int = 2) -> str:
    center, std = row[f"{name}_mean"], row[f"{name}_std"]
    return "" if center is None else f"{center:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def _ratio(name: str, row: Row) -> str:
    value = row[name]
    return "" if value is None else f"{value:.2f}"


def _at_budget(row: Row, shared: float | None) -> str:
    """Return kNN accuracy at equal compute, with the budget unless all rows share it."""
    own = row["budget_flops"]
    return _spread("knn_at_budget", row) + ("" if own in (None, shared) else f" (at {quantity(own)})")


def quantity(value: float | None) -> str:
    """Return a number of operations such as "12.3 PFLOP"; empty if nothing was counted."""
    if not value:
        return ""
    power = min(int(math.log10(value)) // 3, len(PREFIXES) - 1)
    return f"{value / 1000**power:.3g} {PREFIXES[power]}FLOP"


def difference_in_words(row: Row, measure: Measure) -> str:
    """Return "+1.20 [+0.30, +2.10]", with the number of pairs if some seeds have no partner."""
    center, low, high, pairs = (
        row[f"{measure}_{part}"] for part in ("minus_baseline", "minus_baseline_low", "minus_baseline_high", "pairs")
    )
    if center is None:
        return ""
    text = f"{center:+.2f}" + ("" if low is None else f" [{low:+.2f}, {high:+.2f}]")
    return text + (f" of {pairs} pairs" if pairs < row["seeds"] else "")
