"""Configuration of the documentation, `make docs`. Its root is the repository, so that links work there, too."""

from __future__ import annotations

from importlib.metadata import version as installed

project, author = "idaa-lightly", "the idaa-lightly maintainers"
version = release = installed("idaa-lightly")
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_click", "sphinx_design",
]  # fmt: skip
root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "docs/**/*.md", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "plugins/README.md", "benchmarks/*.md",
    "benchmarks/**/*.md",
]  # fmt: skip
html_theme = "furo"
html_title = "idaa-lightly"
html_show_copyright = html_show_sphinx = False
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 4
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
