"""The pages of the documentation: their Python runs, and the messages that they quote are those of the code."""

from __future__ import annotations

import doctest
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightly.loss import NTXentLoss
from matplotlib import pyplot as plt
from messages import nodes, raised, text

import idaa_lightly
import idaa_lightly.plugin
from idaa_lightly import dual_batchnorm

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if "```python" in path.read_text())
ELSEWHERE = {"loops.md": [1, 2]}  # blocks that test_package.py runs with a Trainer
REFERENCE = ROOT / "docs" / "reference"


def given() -> dict[str, Any]:
    """Return what a reader of loops.md has defined before. Other pages stand alone."""
    model = dual_batchnorm(torchvision.models.resnet18(num_classes=8))
    return {name: getattr(idaa_lightly, name) for name in idaa_lightly.__all__} | {
        "torch": torch,
        "NTXentLoss": NTXentLoss,
        "model": model,
        "optimizer": torch.optim.SGD(model.conv1.parameters(), lr=0.1),
        "normalize": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }


def blocks_of(page: Path) -> list[str]:
    """Return the blocks of Python of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path) -> None:
    scope = given() if page.name == "loops.md" else {}
    for index, block in enumerate(blocks_of(page)):
        if index not in ELSEWHERE.get(page.name, []):
            exec(compile(block, f"{page.name} block {index}", "exec"), scope)


def examples() -> list[doctest.DocTest]:
    """Return the examples in the docstrings that the reference shows."""
    scope: dict[str, Any] = {}
    exec(blocks_of(REFERENCE / "library.md")[0], scope)
    pages = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    modules = [importlib.import_module(name) for name in re.findall(r"automodule:: (\S+)", pages)]
    found = [doctest.DocTestFinder().find(module, module.__name__, globs=dict(scope)) for module in modules]
    return [test for tests in found for test in tests if test.examples]


EXAMPLES = {test.name.rpartition(".")[2]: test for test in examples()}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec)")  # from Lightning
def test_the_example_of_a_name_runs(name: str) -> None:
    assert doctest.DocTestRunner().run(EXAMPLES[name]).failed == 0


def test_the_page_for_loops_lists_every_public_name() -> None:
    text = (ROOT / "docs" / "loops.md").read_text()
    assert [name for name in idaa_lightly.__all__ if name not in text] == ["AdversarialOutput", "DualBatchNorm"]


def test_every_public_name_has_an_example() -> None:
    assert not {*idaa_lightly.__all__, *idaa_lightly.plugin.__all__} - EXAMPLES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["knn", "space"])
def test_a_notebook_runs(name: str) -> None:
    """The others run by `make notebooks`."""
    page = (ROOT / "docs" / "notebooks" / f"{name}.md").read_text()
    scope: dict[str, Any] = {}
    for index, cell in enumerate(re.findall(r"```\{code-cell\}\n(?::[^\n]*\n)*(.*?)```", page, re.DOTALL)):
        exec(compile(cell, f"{name} cell {index}", "exec"), scope)
    assert plt.get_fignums()
    plt.close("all")


def test_the_messages_of_the_faq_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "faq.md").read_text()
    messages = re.findall(r"^- `(.+?)`\\$", page, re.MULTILINE)
    assert len(messages) > 50
    texts = "\n".join(map(text, nodes()))
    assert not [message for message in messages if message not in texts]


def test_the_list_of_messages_holds_those_of_every_part() -> None:
    messages = raised()
    for part in ("the reused graph allows", "no data set …; known:", "--budget is …", "samples cannot be whitened"):
        assert any(part in message for message in messages), part


def test_the_bar_chart_shows_the_committed_costs() -> None:
    """`python docs/pictures.py` draws it."""
    (setting,) = json.loads((ROOT / "benchmarks/results/step_cost_forms.json").read_text())["settings"]
    texts = re.findall(r">([^<>]+)</text>", (ROOT / "docs/pictures/cost.svg").read_text())
    costs = {name: f"{step['relative']['flops_per_image']:.2f}" for name, step in setting["steps"].items()}
    names = [text for text in texts if text in costs]
    first = texts.index(names[-1]) + 1  # The numbers follow the names, in the same order.
    assert dict(zip(names, texts[first:], strict=False)) == costs


def test_every_picture_has_a_text() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert "![](" not in page.read_text(), page
