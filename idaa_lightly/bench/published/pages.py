"""Pages, pictures and a spreadsheet that are rendered from the records of recipes.

A directory such as benchmarks/ gets

    README.md          a section per question, between `<!-- questions -->` and `<!-- end -->`, and what was not run;
                       questions may name another page for their sections
    tables/NAME.md     all tables of a question
    figures/NAME.svg   the forest plot of its contrasts
    results.csv        a row per record
"""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path

from idaa_lightly.bench.compare.forest import Contrast, contrast, description, save_forest
from idaa_lightly.bench.compare.groups import MEASURES, Group, read_groups
from idaa_lightly.bench.published.differences import differences_of
from idaa_lightly.bench.published.recipes import Question, Table, read_questions, read_table, table_names
from idaa_lightly.bench.published.tables import render
from idaa_lightly.bench.record import config_of, fit_flops, read_record, training_flops
from idaa_lightly.files import atomic_write

SECTION = re.compile(r"(<!-- questions -->\n).*?(<!-- end -->)", re.DOTALL)
DESCRIPTION = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)


def pages(folder: Path) -> dict[Path, str]:
    """Return what the pages and the spreadsheet should hold, by file."""
    tables = {name: read_table(folder, name) for name in table_names(folder)}
    questions = read_questions(folder)
    texts = {folder / "results.csv": _results(folder)}
    for question in questions:
        texts[folder / "tables" / f"{question.name}.md"] = _page(question, tables)
    for name in sorted({"README.md", *(question.page for question in questions)}):
        if (page := folder / name).exists():
            sections = "\n\n".join(_section(question) for question in questions if question.page == name)
            if name == "README.md":
                sections = f"{sections}\n\n{_not_run(tables)}"
            texts[page] = _filled(page.read_text(encoding="utf-8"), sections)
    return texts


def figures(folder: Path) -> dict[Path, list[Contrast]]:
    """Return what the forest plots should show, by file."""
    groups: dict[str, Group] = {}
    for records in sorted((folder / "records").glob("*")):
        if any(records.rglob("record.json")):
            both, _ = read_groups([records], by_commit=False)
            if len(both) == 1:  # A recipe that was run on two data sets gives two groups: its difference is ambiguous.
                groups[records.name] = both[0]
    made = {}
    for question in read_questions(folder):
        pairs = [(one, other) for _, one, other in question.contrasts]
        found = differences_of(groups, pairs, joint=question.joint)
        rows = [contrast(row[0], found[row[1:]]) for row in question.contrasts if row[1:] in found]
        if shown := [row for row in rows if row is not None]:
            made[folder / "figures" / f"{question.name}.svg"] = shown
    return made


def figures_of(path: Path) -> str:
    """Return the figures that a forest plot shows, as `description` writes them; empty if there is no such file."""
    found = DESCRIPTION.search(path.read_text(encoding="utf-8")) if path.exists() else None
    return html.unescape(found[1]) if found else ""


def write_pages(folder: Path) -> list[Path]:
    """Render pages, spreadsheet and pictures; return the files that changed."""
    changed = []
    for path, text in pages(folder).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            changed.append(path)
    for path, rows in figures(folder).items():
        if figures_of(path) != description(rows):
            save_forest(rows, path)
            changed.append(path)
    return changed


def _filled(page: str, sections: str) -> str:
    """Return a page with these sections between its two marks."""
    return SECTION.sub(lambda found: f"{found[1]}\n{sections}\n\n{found[2]}", page)


def _section(question: Question) -> str:
    """Return a question's heading, picture, conclusion and command."""
    command = f"`idaa-bench table {' '.join(question.tables)}`"
    picture = f"![{question.title}]({question.picture})" if question.picture else ""
    link = f"[All tables](tables/{question.name}.md). {command}"
    return "\n\n".join(part for part in (f"### {question.title}", picture, question.conclusion, link) if part)


def _page(question: Question, tables: dict[str, Table]) -> str:
    """Return the page of a question: its section, and all its tables."""
    texts = [render(tables[name]).replace("](records/", "](../records/").strip() for name in question.tables]
    shown = not question.picture or question.picture in "".join(texts)  # A study shows its picture itself.
    picture = "" if shown else f"![{question.title}](../{question.picture})"
    parts = [f"# {question.title}", question.conclusion, picture, *texts, f"[All questions](../{question.page})"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _not_run(tables: dict[str, Table]) -> str:
    """Return a line for each table of which no cell was run."""
    lines = [
        f"- `idaa-bench table {name}`: {table.title}"
        for name, table in tables.items()
        if not any(any(table.records(recipe).rglob("record.json")) for recipe in table.recipes)
    ]
    return "\n".join(["### Tables that were not run", "", *lines]) if lines else ""


def _results(folder: Path) -> str:
    """Return a spreadsheet with a row per record."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measures = [f"{measure}, %" for measure in MEASURES]
    names = ["recipe", "seed", "method", "aug", *measures, "kNN untrained, %", "epochs", "training, s"]
    writer.writerow([*names, "training FLOPs", "fitting FLOPs", "commit", "device", "torch"])
    for path in sorted((folder / "records").rglob("record.json")):
        record = read_record(path.parent)
        config = config_of(record)
        accuracies = [_percent(record["last"].get(measure)) for measure in MEASURES]
        row = [path.parent.parent.name, config.seed, config.method, config.aug, *accuracies]
        row += [_percent(record["initial"].get("knn")), config.epochs, record["time"]["train_s"]]
        row += [f"{training_flops(record):.4g}", f"{fit_flops(record):.4g}", record["git_commit"]]
        writer.writerow([*row, record["device"]["name"], record["versions"].get("torch", "")])
    return text.getvalue()


def _percent(value: float | None) -> str:
    """Return a value in [0, 1] in percent. It is empty without labels."""
    return "" if value is None else f"{100 * value:.2f}"
