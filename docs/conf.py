"""Configuration of the documentation, `make docs`. Its root is the repository, so that links work there, too."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent))
from messages import raised

project, author = "idaa-lightly", "the idaa-lightly maintainers"
version = release = installed("idaa-lightly")
extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_click", "sphinx_design",
]  # fmt: skip
root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "docs/**/*.md", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "plugins/README.md", "benchmarks/*.md",
    "benchmarks/**/*.md",
]  # fmt: skip
default_role = "code"  # Docstrings have single backticks.
smartquotes = False
highlight_language = "text"
html_theme = "furo"
html_title = "idaa-lightly"
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {
        "drawing": "none", "drawing-blend": "normal", "added": "#116329", "removed": "#a40e26",
    },
    "dark_css_variables": {
        "drawing": "invert(1) hue-rotate(180deg)", "drawing-blend": "screen", "added": "#7ee787", "removed": "#ffa198",
    },
}  # fmt: skip
html_static_path, html_css_files, html_js_files = ["_static"], ["site.css"], ["site.js"]
html_show_copyright = html_show_sphinx = False
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # `make notebooks` executes them.
nb_execution_raise_on_error = nb_merge_streams = True
nb_execution_timeout = 600  # seconds a cell
nb_execution_cache_path = "build/notebooks"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = True  # Every type in a signature links to something.
nitpick_ignore_regex = [("py:.*", r".*\._\w+"), ("py:class", r"[\d.]+|.*\[.*")]  # private classes; parts of a range
LINKS = dict(line.split() for line in Path(__file__).with_name("links.txt").read_text().splitlines())


def skip(app: Any, what: str, name: str, found: object, skipped: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples, which the class documents already."""
    return True if type(found).__name__ == "_tuplegetter" else None


def public_bases(app: Any, name: str, found: object, options: object, bases: list[Any]) -> None:
    """Show the base of a private base class in its place."""
    bases[:] = [base.__base__ if getattr(base, "__name__", "").startswith("_") else base for base in bases]


def keep_lines(app: Any, ctx: Any, lines: list[str]) -> None:
    """Show the blocks of a help that Click does not wrap, such as examples, as they are in the terminal."""
    made: list[str] = []
    for line in lines:
        if line.startswith("| "):
            if not (made and made[-1].startswith("    ")):
                made += ["::", ""]
            made.append(f"    {line[2:]}")
        else:
            made.append(line)
    lines[:] = made


def link(app: Any, env: object, node: Any, shown: nodes.Node) -> nodes.Node | None:
    """Link a name of another project to its page in links.txt, because inventories would have to be downloaded."""
    page = LINKS.get(node["reftarget"])
    return nodes.reference("", "", shown, refuri=page, internal=False) if page else None


def list_messages(app: Any, page: str, source: list[str]) -> None:
    """Add the messages of all errors to the page of questions and errors."""
    if page == "docs/faq":
        source[0] += "\n".join(f"- `` {message} ``" for message in raised())


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("source-read", list_messages)
    app.connect("missing-reference", link)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("sphinx-click-process-description", keep_lines)
