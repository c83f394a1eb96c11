"""Messages of the errors in the code, for the page of questions and errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from idaa_lightly import errors

ROOT = Path(__file__).parents[1]


def nodes() -> Iterator[ast.AST]:
    """Yield all nodes of the code."""
    for folder in ("idaa_lightly", "plugins"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from ast.walk(ast.parse(path.read_text()))


def text(node: ast.AST) -> str:
    """Return a string of the code, with an ellipsis for each placeholder, or an empty string for any other node."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def raised() -> list[str]:
    """Return the messages of all errors that the code raises on purpose and that say more than their values."""
    calls = (node.exc for node in nodes() if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    found = {text(call.args[0]) for call in calls if call.args and hasattr(errors, getattr(call.func, "id", ""))}
    return sorted((message for message in found if len(message.replace("…", "").split()) > 3), key=str.casefold)
