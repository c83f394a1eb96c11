"""A comparison as text: for the terminal and a README, a spreadsheet, or a paper."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

from idaa_lightly.bench.compare.comparison import Comparison
from idaa_lightly.bench.compare.groups import BASELINE, Measure, Unlabelled

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
TITLES: dict[Measure, str] = {"knn": "kNN", "knn_projection": "kNN on the projection", "linear": "linear"}
UNLABELLED_TITLES: dict[Unlabelled, str] = {
    "rankme": "RankMe",
    "uniformity": "uniformity",
    "alignment": "alignment",
    "embedding_spread": "spread",
}
ALL_TITLES: dict[str, str] = {str(name): title for name, title in (*TITLES.items(), *UNLABELLED_TITLES.items())}
"""Titles of accuracies and of figures without labels."""
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$",
    "−": "$-$", "–": "--", "<": "$<$", ">": "$>$",
})  # fmt: skip
DISPENSABLE = (
    "images_per_s", "alignment", "uniformity", "embedding_spread", "knn_projection", "time_relative", "train_s",
    "flops", "knn_at_budget", "flops_relative",
)  # fmt: skip
"""Keys of columns that a narrow terminal leaves out, in this order."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table of a comparison.

    Attributes:
        key: Name for programs and files, such as "knn_difference".
        title: Header for people, such as "Δ kNN [95 %]".
        text: Function from a row of the comparison to the text of its cell.
        number: The entry of the row that the column is sorted by. Empty for columns of words.
        measure: The measure whose difference from the baseline the column shows, if any.
    """

    key: str
    title: str
    text: Callable[[Row], str]
    number: str = ""
    measure: Measure | None = None


def columns(comparison: Comparison, wanted: Collection[str] = ()) -> list[Column]:
    """Return the columns that are not empty in all rows.

    Args:
        comparison: Comparison to show.
        wanted: Figures without labels to show. All are shown if a row has no accuracy.
    """
    against = comparison.against
    to = "" if against == BASELINE else f" to {against}"
    budgets = {row["budget_flops"] for row in comparison.rows}
    budget = next(iter(budgets)) if len(budgets) == 1 else None
    at = f"at {quantity(budget)}" if len(budgets) == 1 else "at equal FLOPs"
    names = _names(comparison)
    every = [
        *(Column(name, name, partial(_word, name), name * (name == "seeds")) for name in names),
        *(
            Column(measure, f"{title}, %", partial(_spread, measure), f"{measure}_mean")
            for measure, title in TITLES.items()
        ),
        *(
            Column(name, title, partial(_spread, name), f"{name}_mean")
            for name, title in UNLABELLED_TITLES.items()
            if name in wanted or any(row["knn_mean"] is None for row in comparison.rows)
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


def fit(comparison: Comparison, width: int) -> tuple[list[list[Column]], list[str]]:
    """Choose the columns of tables that fit a line width. A cell with a figure is never wrapped or cut.

    Words that all rows share are left out. If the rest is too wide, columns are dropped in the order of `DISPENSABLE`.
    If that does not suffice, the figures are spread over several tables, each with the words that identify its rows.

    Args:
        comparison: Comparison to show.
        width: Characters in a line.

    Returns:
        The columns of each table, and facts for its caption: words that are shared, and titles that were dropped.
    """
    shown, rows = columns(comparison), comparison.rows
    words = [column for column in shown if column.key in _names(comparison)]
    shared = [column for column in words[1:] if len(rows) > 1 and len({column.text(row) for row in rows}) == 1]
    if len(rows) > 1 and len({words[0].text(row) for row in rows}) == 1 and len(words) > len(shared) + 1:
        shared.insert(0, words[0])
    facts = [f"{column.title} {column.text(rows[0])}" for column in shared]
    words = [column for column in words if column not in shared]
    figures = [column for column in shown if column not in shared and column not in words]
    dropped = []
    for key in DISPENSABLE:
        if _width(words + figures, rows) > width and (found := [c for c in figures if c.key == key]):
            figures.remove(found[0])
            dropped.append(found[0].title)
    tables = [words]
    for column in figures:
        if len(tables[-1]) > len(words) and _width([*tables[-1], column], rows) > width:
            tables.append(words)
        tables[-1] = [*tables[-1], column]
    return tables, facts + ([f"not shown at this width: {'; '.join(dropped)}"] if dropped else [])


def least_width(column: Column, rows: list[Row]) -> int:
    """Return the width of a column in which its title and words wrap at spaces, and its figures do not wrap."""
    texts = [column.title.split(), *([cell] if column.number else cell.split() for cell in map(column.text, rows))]
    return max(len(part) for text in texts for part in text)


def _width(shown: list[Column], rows: list[Row]) -> int:
    """Return the least width of a table with these columns, with its lines."""
    return sum(least_width(column, rows) for column in shown) + 3 * len(shown) + 1


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


def mean_and_std(values: Sequence[float]) -> str:
    """Return mean ± standard deviation, without the latter for a single value. Empty without values."""
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}" if values else ""


def _names(comparison: Comparison) -> list[str]:
    """Return the keys of the columns that identify a row."""
    keys = list(comparison.rows[0])
    return keys[: keys.index("seeds") + 1]


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
