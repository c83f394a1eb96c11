"""The page of promises names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/promises.md"


def test_every_promise_has_a_test() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and ".py" in line]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(\w+\.py)::(\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for file, name in named:
            functions = [
                node for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)
            ]
            assert name in [function.name for function in functions], f"{file} has no {name}"


def test_readme_links_to_the_page() -> None:
    assert "(docs/promises.md)" in (TESTS.parent / "README.md").read_text()
