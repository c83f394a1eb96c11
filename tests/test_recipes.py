"""Tables made of recipes: `idaa-bench table`, and the page of this repository."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from records import a_record

from idaa_lightly.bench.published.pages import SECTION, pages, render
from idaa_lightly.bench.published.recipes import read_table
from idaa_lightly.cli import main
from idaa_lightly.errors import FileFormatError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RECIPE = """\
method = "simclr"
aug = "{aug}"
limit_train = 64
backbone = "resnet9-w4"
epochs = 1
batch_size = 32
accelerator = "cpu"
"""
TABLES = """\
[tables.pairs]
title = "Differences"
seeds = 1
pairs = [["clae", "plain"], ["plain", "clae"]]
paper = {}

[tables.small]
title = "A small table"
note = "Read it with care."
seeds = 2
recipes = ["plain", "clae"]
published = "ResNet-12, 150 epochs"

[tables.other]
title = "Another"
seeds = 1
recipes = ["clae"]
paper = {}

[tables.short]
title = "Cost of an accuracy"
seeds = 2
recipes = ["plain"]
columns = ["aug", "to_30", "to_55", "to_70"]
reach = [30, 55, 70]
paper = {}

[tables.studied]
title = "Identity"
seeds = 1
recipes = ["clae"]
columns = ["aug", "knn"]
study = ["clae"]
paper = {}

[paper.simclr]
clae = { knn = 80.27 }
"""


def bench(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["table", *arguments])
    assert result.exit_code == code, result.output
    return result


def record(
    recipe: str, seed: int, knn: float, commit: str = "c0ffee", time: dict[str, float] | None = None, **config: Any
) -> None:
    """What a run of this recipe would have left."""
    aug = {"plain": "none", "clae": "clae"}[recipe]
    options = {"method": "simclr", "aug": aug, "data": "digits", "limit_train": 64, "backbone": "resnet9-w4"}
    options |= {"epochs": 1, "batch_size": 32, "accelerator": "cpu", "image_size": 32, "seed": seed} | config
    content = a_record(
        config=options,
        initial={"knn_pixels": 0.15},
        last={"epoch": 1, "knn": knn, "knn_projection": knn / 2, "linear": knn},
        history=[{"epoch": 0, "knn": 0.1}, {"epoch": 1, "knn": knn}],
        time=time or {"train_s": 120.0, "images_per_s": 1.0, "flops_per_image": 1},
        data={"fingerprint": ["a", "b"]},
        device={"name": "a CPU"},
        git_commit=commit,
    )
    folder = Path("benchmarks/records", recipe, f"seed-{seed}")
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def benchmarks() -> Path:
    folder = Path("benchmarks")
    (folder / "recipes").mkdir(parents=True)
    (folder / "tables.toml").write_text(TABLES)
    (folder / "recipes/plain.toml").write_text(RECIPE.format(aug="none"))
    (folder / "recipes/clae.toml").write_text("# of old\n" + RECIPE.format(aug="clae"))
    (folder / "README.md").write_text("# Page\n<!-- table small -->\nstale\n<!-- end -->\nText\n")
    return folder


def test_what_is_missing_seed_by_seed(benchmarks: Path) -> None:
    table = read_table(benchmarks, "small")
    assert [(recipe.name, seed) for recipe, seed in table.missing()] == [
        ("plain", 0), ("clae", 0), ("plain", 1), ("clae", 1),
    ]  # fmt: skip
    record("plain", 0, 0.5)
    assert [(recipe.name, seed) for recipe, seed in table.missing()] == [("clae", 0), ("plain", 1), ("clae", 1)]
    assert "1 of 4 runs: A small table" in bench().output


def test_the_rendered_table_by_hand(benchmarks: Path) -> None:
    assert "| simclr | clae | not run | 80.27 |" in render(read_table(benchmarks, "small"))
    for seed, knn in enumerate((0.5, 0.6)):
        record("plain", seed, knn, commit=f"c0ffee{seed}")  # a row all the same
    text = render(read_table(benchmarks, "small"))
    assert text.startswith("**A small table**")
    pixels, untrained, plain, clae = text.splitlines()[4:8]
    assert pixels.startswith("| raw pixels |  | 1 | 15.00 |  |")
    assert untrained.startswith("| untrained network |  | 2 | 10.00 ± 0.00 | 5.00 ± 0.00 | 20.00 ± 0.00 |")
    assert plain.startswith("| simclr | none | 2 | 55.00 ± 7.07 | 27.50 ± 3.54 | 55.00 ± 7.07 |")
    assert clae.startswith("| simclr | clae | not run |")
    assert clae.endswith("| 80.27 |")
    assert "paper*: kNN, %" in text
    assert "commit c0ffee0 + c0ffee1" in text
    assert "Read it with care." in text
    assert "\\* ResNet-12, 150 epochs." in text
    assert "`idaa-bench table small` (2 runs are missing)" in text
    assert "paper" not in render(read_table(benchmarks, "other"))


def test_differences_of_pairs_by_hand(benchmarks: Path) -> None:
    assert render(read_table(benchmarks, "pairs")).splitlines()[4] == "| clae − plain | not run |"
    record("plain", 7, 0.5)
    assert render(read_table(benchmarks, "pairs")).splitlines()[4] == "| clae − plain | not run |"
    for seed, (plain, clae) in enumerate(((0.5, 0.6), (0.5, 0.62), (0.5, None))):
        record("plain", seed, plain)
        if clae is not None:
            record("clae", seed, clae)
    lines = render(read_table(benchmarks, "pairs")).splitlines()
    assert lines[2] == "| difference | seeds | Δ kNN [95 %] | Δ kNN on the projection [95 %] | Δ linear [95 %] |"
    # mean 11, standard error 1, and 12.706 of Student's t with one degree of freedom
    assert lines[4] == "| clae − plain | 2 | +11.00 [-1.71, +23.71] | +5.50 [-0.85, +11.85] | +11.00 [-1.71, +23.71] |"
    assert lines[5] == "| plain − clae | 2 | -11.00 [-23.71, +1.71] | -5.50 [-11.85, +0.85] | -11.00 [-23.71, +1.71] |"
    assert lines[-1] == "`idaa-bench table pairs`"


def test_the_cost_of_an_accuracy_by_hand() -> None:
    for seed, knn in enumerate((0.5, 0.6)):  # from 0.1, in 120 s and 64 operations
        record("plain", seed, knn, time={"train_s": 120.0, "images_per_s": 0.5, "flops_per_image": 10**9})
    text = render(read_table(Path("benchmarks"), "short"))
    header, _, row = text.splitlines()[2:5]
    assert header == "| aug | to 30 % kNN | to 55 % kNN | to 70 % kNN |"
    # 0.5: half of the training to 0.3; 0.6: two fifths to 0.3, nine tenths to 0.55
    assert row == "| none | 27 GFLOP, 54 s | 54 GFLOP, 108 s (1 of 2 seeds) | not reached |"


def test_a_study_of_identity_is_made_once(benchmarks: Path) -> None:
    result = bench("studied").output
    folder = benchmarks / "records/clae/seed-0/identity"
    assert "| clae |" in result
    assert "| second view |" in result
    assert "![Distances to the own view and to the nearest other](records/clae/seed-0/identity/identity.png)" in result
    assert "second view" not in render(read_table(benchmarks, "other"))  # of the same recipe, but not asked for
    before = (folder / "identity.json").stat().st_mtime_ns
    assert bench("studied").stdout.startswith("**Identity**")  # nothing was run again
    assert (folder / "identity.json").stat().st_mtime_ns == before


def test_pages_and_heads(benchmarks: Path) -> None:
    record("clae", 0, 0.25)
    result = bench("small", "--render")
    assert "Rendered: benchmarks/README.md" in result.stderr
    page = (benchmarks / "README.md").read_text()
    assert page.startswith("# Page\n<!-- table small -->\n\n**A small table**")
    assert page.endswith("\n<!-- end -->\nText\n")
    head, body = (benchmarks / "recipes/clae.toml").read_text().split("method", 1)
    assert head.splitlines() == [
        "# idaa-bench run --config benchmarks/recipes/clae.toml --seed 0 --seed 1",
        "# expected: knn 25.00, knn_projection 12.50, linear 25.00 (1 seeds), 2 min of training, a CPU",
        "# paper: knn 80.27 (ResNet-12, 150 epochs)",
    ]
    assert "method" + body == RECIPE.format(aug="clae")
    assert "# not run yet" in (benchmarks / "recipes/plain.toml").read_text()
    assert "Rendered" not in bench("small", "--render").stderr


def test_it_runs_what_is_missing_and_nothing_twice(benchmarks: Path) -> None:
    assert "No time for another unit." in bench("other", "--minutes", "0").output
    assert "epoch 1/1" in bench("other").output
    kept = json.loads((benchmarks / "records/clae/seed-0/record.json").read_text())
    assert kept == json.loads(Path("runs/recipes/clae/seed-0/record.json").read_text())
    assert "epoch 1/1" not in bench("other").output
    (benchmarks / "records/clae/seed-0/record.json").unlink()
    assert "is finished already" in bench("other").output  # the run folder has it still
    assert (benchmarks / "records/clae/seed-0/record.json").exists()


def test_bad_input(benchmarks: Path) -> None:
    assert (
        "no table 'smal' in benchmarks; known: pairs, small, other, short, studied. Did you mean 'small'?"
        in bench("smal", code=2).output
    )
    record("plain", 0, 0.5, epochs=2)
    text = "benchmarks/records/plain/seed-0 is of another configuration than its recipe"
    assert text in bench("small", "--render", code=1).output
    (benchmarks / "tables.toml").write_text("[tables.small]\ntitle = 'x'\n")
    with pytest.raises(FileFormatError, match=r"\[tables.small\] needs title, seeds, and either recipes or pairs"):
        read_table(benchmarks, "small")
    (benchmarks / "tables.toml").write_text("[tables.small]\ntitle = 'x'\nseeds = 1\npairs = [['a']]\n")
    with pytest.raises(FileFormatError, match=r"has pairs \[\['a'\]\], but expected two recipes in each"):
        read_table(benchmarks, "small")
    (benchmarks / "tables.toml").write_text("")
    assert "holds no tables, but expected [tables.NAME]" in bench(code=1).output


def test_the_page_of_this_repository_is_what_its_records_give() -> None:
    for path, text in pages(BENCHMARKS).items():
        assert path.read_text() == text, f"{path}: run `idaa-bench table laptop --render`"


def test_the_costs_of_this_repository_are_what_was_measured() -> None:
    spec = importlib.util.spec_from_file_location("costs", BENCHMARKS / "costs.py")
    assert spec is not None
    assert spec.loader is not None
    costs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(costs)
    page = (BENCHMARKS / "README.md").read_text()
    assert costs.rendered(page) == page, "run `python benchmarks/costs.py`"


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_every_interval_of_the_text_stands_in_a_table_of_differences(page: str) -> None:
    number = r"([+−-]?\d+\.\d\d)"
    prose = re.sub(r"```.*?```|^\|.*?$", "", SECTION.sub("", (BENCHMARKS.parent / page).read_text()), flags=re.S | re.M)
    text = " ".join(prose.split())
    said = re.findall(rf"{number} \[{number}, {number}\]", text)
    assert 0 < len(said) == len(re.findall(r"\[[+−-]?\d+\.", text))  # all that looks like one
    table = render(read_table(BENCHMARKS, "differences"))
    for center, low, high in ([float(part.replace("−", "-")) for part in found] for found in said):
        assert f"| {center:+.2f} [{low:+.2f}, {high:+.2f}] |" in table
