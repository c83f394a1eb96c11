"""A comparison as text: for the terminal and a README, a spreadsheet, or a paper."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from idaa_lightly.bench.compare.groups import BASELINE, Comparison

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$",
    "−": "$-$", "–": "--", "<": "$<$", ">": "$>$",
})  # fmt: skip


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people; a column that is empty in all rows is left out."""
    budgets = {row["budget_flops"] for row in comparison.rows}
    same = len(budgets) == 1
    at = f"at {quantity(budgets.pop())}" if same else "at equal FLOPs"
    against, to = comparison.against, "" if comparison.against == BASELINE else f" to {comparison.against}"
    table = []
    for row in comparison.rows:
        names = {key: str(value) for key, value in row.items() if list(row).index(key) <= list(row).index("seeds")}
        own_budget = "" if same or row["budget_flops"] is None else f" (at {quantity(row['budget_flops'])})"
        times, flops = (row[f"{cost}_relative"] for cost in ("time", "flops"))
        numbers = {
            "kNN, %": _spread(row, "knn"),
            "kNN on the projection, %": _spread(row, "knn_projection"),
            "linear, %": _spread(row, "linear"),
            f"Δ kNN{to} [95 %]": difference_in_words(row, "knn"),
            f"Δ linear{to} [95 %]": difference_in_words(row, "linear"),
            "training, s": _spread(row, "train_s", 1),
            f"× {against}": "" if times is None else f"{times:.2f}",
            "images/s": f"{row['images_per_s']:.0f}",
            "FLOPs": quantity(row["flops"]),
            f"FLOPs × {against}": "" if flops is None else f"{flops:.2f}",
            f"kNN {at}, %": _spread(row, "knn_at_budget") + own_budget,
        }
        table.append(names | numbers)
    header = [name for name in table[0] if any(row[name] for row in table)]
    return header, [[row[name] for name in header] for row in table]


def to_markdown(comparison: Comparison) -> str:
    """For a README."""
    table = markdown(*cells(comparison))
    return "\n\n".join([table, f"All groups: {comparison.shared}.", *comparison.notes]) + "\n"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_latex(comparison: Comparison) -> str:
    """For a paper; needs the package booktabs."""
    header, rows = cells(comparison)
    lines = [r" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in [header, *rows]]
    comments = [f"% {note}" for note in (f"All groups: {comparison.shared}.", *comparison.notes)]
    begin = rf"\begin{{tabular}}{{{'l' * len(header)}}}"
    body = [begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*comments, *body]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Numbers with all their digits, empty where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, comparison.rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(comparison.rows)
    return text.getvalue()


def _spread(row: dict[str, Any], name: str, digits: int = 2) -> str:
    center, std = row[f"{name}_mean"], row[f"{name}_std"]
    return "" if center is None else f"{center:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def quantity(value: float | None) -> str:
    """Such as 12.3 PFLOP; empty where nothing was counted."""
    if not value:
        return ""
    power = min(int(math.log10(value)) // 3, len(PREFIXES) - 1)
    return f"{value / 1000**power:.3g} {PREFIXES[power]}FLOP"


def difference_in_words(row: dict[str, Any], name: str) -> str:
    """Such as "+1.20 [0.30, 2.10]", with the number of pairs where some seeds have no partner."""
    center, low, high, pairs = (
        row[f"{name}_{part}"] for part in ("minus_baseline", "minus_baseline_low", "minus_baseline_high", "pairs")
    )
    if center is None:
        return ""
    text = f"{center:+.2f}" + ("" if low is None else f" [{low:+.2f}, {high:+.2f}]")
    return text + (f" of {pairs} pairs" if pairs < row["seeds"] else "")
