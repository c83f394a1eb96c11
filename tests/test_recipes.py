"""Tables made from recipes by `idaa-bench table`, and the benchmark pages of this repository."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from records import a_record

from idaa_lightly.bench.compare.forest import description
from idaa_lightly.bench.config import read_recipe
from idaa_lightly.bench.published.pages import figures, figures_of, pages
from idaa_lightly.bench.published.recipes import read_questions, read_table
from idaa_lightly.bench.published.tables import render
from idaa_lightly.bench.record import read_record
from idaa_lightly.bench.run.setup import resolve
from idaa_lightly.cli import main
from idaa_lightly.errors import FileFormatError, UsageError
from idaa_lightly.registry import entries

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RECIPES = """\
[bases]
small = { limit_train = 64, backbone = "resnet9-w4", epochs = 1, batch_size = 32, accelerator = "cpu" }
simclr = { base = "small", method = "simclr" }

[recipes]
plain = { base = "simclr", aug = "none" }
clae = { base = "plain", aug = "clae" }
strong = { base = "clae", epochs = 2, set.aug.eps = 0.1, set.method.temperature = 0.2 }
stronger = { base = "strong", set.aug.eps = 0.2 }
"""
QUESTIONS = (
    """\
[help]
title = "Does CLAE help?"
conclusion = """
    + "'''"
    + """
It adds
11 points.
"""
    + "'''"
    + """
tables = ["small"]
contrasts = [["CLAE − SimCLR", "clae", "plain"], ["never run", "strong", "plain"]]

[other]
title = "Another question?"
conclusion = "No."
tables = ["other", "short"]
"""
)
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
    """Write the record that a run of this recipe would write."""
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
    folder.mkdir()
    (folder / "tables.toml").write_text(TABLES)
    (folder / "recipes.toml").write_text(RECIPES)
    (folder / "questions.toml").write_text(QUESTIONS)
    (folder / "README.md").write_text("# Page\n<!-- questions -->\nstale\n<!-- end -->\nText\n")
    return folder


def test_outside_a_clone_the_command_says_what_it_needs() -> None:
    for arguments in ([], ["laptop"], ["--render", "laptop"]):
        result = CliRunner().invoke(main, ["table", *arguments, "--folder", "other"])
        assert result.exit_code == 2
        text = " has no tables.toml: tables need the directory benchmarks/ of idaa-lightly's repository, which is not"
        assert text in result.stderr
        assert "Change to a clone, or name that directory by --folder" in result.stderr


def test_what_is_missing_seed_by_seed(benchmarks: Path) -> None:
    table = read_table(benchmarks, "small")
    assert [(recipe.name, seed) for recipe, seed in table.missing()] == [
        ("plain", 0), ("clae", 0), ("plain", 1), ("clae", 1),
    ]  # fmt: skip
    record("plain", 0, 0.5)
    assert [(recipe.name, seed) for recipe, seed in table.missing()] == [("clae", 0), ("plain", 1), ("clae", 1)]
    assert "│ 1 of 4 │ A small table" in bench().output


def test_the_rendered_table_by_hand(benchmarks: Path) -> None:
    assert "| simclr | clae | not run | 80.27 |" in render(read_table(benchmarks, "small"))
    for seed, knn in enumerate((0.5, 0.6)):
        record("plain", seed, knn, commit=f"c0ffee{seed}")  # Commits do not split the row.
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
    assert render(read_table(benchmarks, "other")).splitlines()[2:5:2] == ["Nothing was run yet.", "Not run: `clae`."]
    record("clae", 0, 0.5)
    assert "Not run" not in (other := render(read_table(benchmarks, "other")))
    assert "paper" not in other


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
    # The mean is 11, the standard error 1, and Student's t 12.706 for one degree of freedom.
    assert lines[4] == "| clae − plain | 2 | +11.00 [-1.71, +23.71] | +5.50 [-0.85, +11.85] | +11.00 [-1.71, +23.71] |"
    assert lines[5] == "| plain − clae | 2 | -11.00 [-23.71, +1.71] | -5.50 [-11.85, +0.85] | -11.00 [-23.71, +1.71] |"
    assert lines[-1] == "`idaa-bench table pairs`"
    # The pooled variance is 1, and Student's t 25.452 for one degree of freedom and two intervals at once.
    lines = render(replace(read_table(benchmarks, "pairs"), joint=True)).splitlines()
    assert lines[4].startswith("| clae − plain | 2 | +11.00 [-14.45, +36.45] | +5.50 [-7.23, +18.23] | ")


def test_the_cost_of_an_accuracy_by_hand() -> None:
    for seed, (knn, seconds) in enumerate(((0.5, 120.0), (0.6, 240.0))):  # From 0.1, with half a GFLOP each second.
        cost = {"train_s": seconds, "images_per_s": 0.5, "flops_per_image": 10**9, "fit_flops": 7 * 10**9}
        record("plain", seed, knn, time=cost)
    text = render(read_table(Path("benchmarks"), "short"))
    header, _, row = text.splitlines()[2:5]
    assert header == "| aug | to 30 % kNN | to 55 % kNN | to 70 % kNN |"
    # The run that ends at 0.5 reaches 0.3 after 1/2 of its training, the other 0.3 after 2/5 and 0.55 after 9/10.
    # Fitting is not counted.
    assert row == "| none | 39 GFLOP, 78 s | 108 GFLOP, 216 s (1 of 2 seeds) | not reached |"


def test_a_study_of_identity_is_made_once(benchmarks: Path) -> None:
    result = bench("studied").output
    folder = benchmarks / "records/clae/seed-0/identity"
    assert "| clae |" in result
    assert "| second view |" in result
    assert "![Distances to the own view and to the nearest other](records/clae/seed-0/identity/identity.png)" in result
    assert "second view" not in render(read_table(benchmarks, "other"))  # Same recipe, but no study requested.
    before = (folder / "identity.json").stat().st_mtime_ns
    assert bench("studied").stdout.startswith("**Identity**")  # Nothing was run again.
    assert (folder / "identity.json").stat().st_mtime_ns == before


def test_recipes_override_their_bases(benchmarks: Path) -> None:
    small = {"limit_train": 64, "backbone": "resnet9-w4", "epochs": 1, "batch_size": 32, "accelerator": "cpu"}
    place = benchmarks / "recipes.toml"
    assert read_recipe(place, "clae") == small | {"method": "simclr", "aug": "clae"}
    options = {"aug": {"eps": 0.2}, "method": {"temperature": 0.2}}
    assert read_recipe(place, "stronger") == small | {"method": "simclr", "aug": "clae", "epochs": 2, "set": options}
    shown = CliRunner().invoke(main, ["run", "--config", f"{place}:stronger", "--epochs", "3", "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert {"epochs = 3", "eps = 0.2", "temperature = 0.2", 'aug = "clae"'} <= set(shown.output.splitlines())


@pytest.mark.parametrize(
    ("recipes", "name", "error", "text"),
    [
        ("[recipes]\na = {}", "b", UsageError, "no recipe 'b' in x.toml; known: a."),
        (
            "[recipes]\n" + "\n".join(f"r{n} = {{}}" for n in range(20)),
            "r99",
            UsageError,
            "r10, r11 and 8 more. Did you",
        ),
        ("[bases]\nb = {}\n[recipes]\na = {}", "b", UsageError, "no recipe 'b' in x.toml; known: a."),
        ("[recipes]\na = { base = 'c' }", "a", FileFormatError, "the recipe 'a' has the base 'c', which is not there"),
        ("[recipes]\na = { base = 'b' }\nb = { base = 'a' }", "a", FileFormatError, "'a' has itself as a base"),
        ("[recipes]\na = { epochs = 0 }", "a", UsageError, "x.toml: a: epochs is 0, but expected int, 1 or more"),
        ("[recipes]\na = { epoch = 1 }", "a", UsageError, "x.toml: a: 'epoch' is not a field of a run"),
    ],
)
def test_bad_recipes(recipes: str, name: str, error: type[Exception], text: str) -> None:
    Path("x.toml").write_text(recipes)
    with pytest.raises(error, match=re.escape(text)):
        read_recipe("x.toml", name)


def test_pages_and_pictures(benchmarks: Path) -> None:
    for seed, (plain, clae) in enumerate(((0.5, 0.6), (0.5, 0.62))):
        record("plain", seed, plain)
        record("clae", seed, clae)
    changed = {"README.md", "results.csv", "tables/help.md", "tables/other.md", "figures/help.svg"}
    told = bench("small", "--render").stderr.splitlines()
    assert set(told) == {f"Rendered: benchmarks/{name}" for name in changed}
    page = (benchmarks / "README.md").read_text()
    assert page.startswith(
        "# Page\n<!-- questions -->\n\n### Does CLAE help?\n\n![Does CLAE help?](figures/help.svg)\n\n"
    )
    assert "\n\nIt adds 11 points.\n\n[All tables](tables/help.md). `idaa-bench table small`\n\n### Another" in page
    assert "### Tables that were not run" not in page
    assert page.endswith("\n<!-- end -->\nText\n")
    shown = json.loads(figures_of(benchmarks / "figures/help.svg"))
    points = [11.0, -1.71, 23.71]  # See test_differences_of_pairs_by_hand.
    assert shown == {"CLAE − SimCLR": {"seeds": 2, "knn": points, "linear": points}}
    tables = (benchmarks / "tables/help.md").read_text()
    assert tables.startswith(
        "# Does CLAE help?\n\nIt adds 11 points.\n\n![Does CLAE help?](../figures/help.svg)\n\n**A small"
    )
    rows = (benchmarks / "results.csv").read_text().splitlines()
    assert rows[1].startswith("clae,0,simclr,clae,60.00,30.00,60.00,10.00,1,120.0,120,0,c0ffee,a CPU")
    assert len(rows) == 5
    assert "Rendered" not in bench("small", "--render").stderr
    record("clae", 2, 0.1)
    record("plain", 2, 0.1)
    assert "Rendered: benchmarks/figures/help.svg" in bench("small", "--render").stderr


def test_a_table_of_which_nothing_was_run_is_a_line(benchmarks: Path) -> None:
    record("plain", 0, 0.5)
    bench("small", "--render")
    lines = (benchmarks / "README.md").read_text().partition("### Tables that were not run\n\n")[2].splitlines()
    assert lines[:2] == ["- `idaa-bench table other`: Another", "- `idaa-bench table studied`: Identity"]
    assert not (benchmarks / "figures").exists()


def test_it_runs_what_is_missing_and_nothing_twice(benchmarks: Path) -> None:
    assert "epoch 1/1" in bench("other", "--minutes", "0").output
    kept = json.loads((benchmarks / "records/clae/seed-0/record.json").read_text())
    assert kept == json.loads(Path("runs/recipes/clae/seed-0/record.json").read_text())
    assert "epoch 1/1" not in bench("other").output
    (benchmarks / "records/clae/seed-0/record.json").unlink()
    assert "is finished already" in bench("other").output  # The run directory still has it.
    assert (benchmarks / "records/clae/seed-0/record.json").exists()
    said = bench("small", "--minutes", "0").output
    assert said.count("epoch 1/1") == 1
    assert "No time for another unit." in said
    assert len(list((benchmarks / "records").rglob("record.json"))) == 2


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


def test_bad_questions(benchmarks: Path) -> None:
    (benchmarks / "questions.toml").write_text("[x]\ntitle = 'x'\n")
    assert "[x] needs title, conclusion and tables" in bench("small", "--render", code=1).output


def test_the_pages_of_this_repository_are_what_its_records_give() -> None:
    for path, text in pages(BENCHMARKS).items():
        assert path.read_text() == text, f"{path}: run `idaa-bench table laptop --render`"
    for path, rows in figures(BENCHMARKS).items():
        assert figures_of(path) == description(rows), f"{path}: run `idaa-bench table laptop --render`"
    for folder, names in (("tables", pages(BENCHMARKS)), ("figures", figures(BENCHMARKS))):
        assert set((BENCHMARKS / folder).iterdir()) <= set(names), "a page without a question"


def test_the_costs_of_this_repository_are_what_was_measured() -> None:
    spec = importlib.util.spec_from_file_location("costs", BENCHMARKS / "costs.py")
    assert spec is not None
    assert spec.loader is not None
    costs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(costs)
    page = (BENCHMARKS / "cost.md").read_text()
    assert costs.rendered(page) == page, "run `python benchmarks/costs.py`"


def looked_up(text: str, *names: str) -> None:
    """Check that every accuracy and every difference in a text is in tables or plots, rounded to the text's digits."""
    numbers = re.findall(r"(\d+(?:\.\d+)?)(?= points| %| ×)", text.replace("95 %", ""))  # 95 % is a confidence level.
    assert numbers
    shown = "".join(figures_of(BENCHMARKS / "figures" / f"{name}.svg") for name in names)
    for name in names:  # A page also has the text itself.
        lines = (BENCHMARKS / "tables" / f"{name}.md").read_text().splitlines()
        shown += "".join(line for line in lines if line.startswith("|"))
    known = [float(number) for number in re.findall(r"\d+\.\d+", shown)]
    for number in numbers:
        digits = len(number.partition(".")[2])
        assert any(round(value, digits) == float(number) for value in known), number


@pytest.mark.parametrize("name", [question.name for question in read_questions(BENCHMARKS)])
def test_every_figure_of_a_conclusion_stands_in_its_tables(name: str) -> None:
    (question,) = [question for question in read_questions(BENCHMARKS) if question.name == name]
    if name == "settings":  # Its numbers are settings, not results.
        return
    looked_up(question.conclusion, name)


def test_every_figure_of_the_readme_stands_in_a_table() -> None:
    readme = (BENCHMARKS.parent / "README.md").read_text()
    looked_up(readme.partition("## What to expect")[2].partition("##")[0], "core", "gain")
    assert "[" not in re.sub(r"\[[^\]]*\]\(", "", readme.partition("## What to expect")[2].partition("##")[0])


def test_the_table_of_all_methods_treats_them_alike() -> None:
    """The trials of a method differ in the learning rate, and the table has the best one if six have run."""
    table, trials = (read_table(BENCHMARKS, name) for name in ("lightly", "lightly-trials"))
    assert [recipe.config.method for recipe in table.recipes] == [
        entry.name for entry in entries("method") if entry.distribution == "idaa-lightly" and entry.name != "cmc"
    ]  # `cmc` trains two networks.
    settings = {"epochs": 12, "evaluate_on": "validation"}
    assert {(recipe.config.epochs, recipe.config.evaluate_on) for recipe in table.recipes} == {(40, "test")}
    same = [replace(recipe.config, method="simclr", lr=None, set={}) for recipe in (*table.recipes, *trials.recipes)]
    assert {recipe.name: recipe.config.set for recipe in table.recipes if recipe.config.set} == {
        "lightly-frossl": {"method": {"invariance": 0.5}},
        "lightly-lejepa": {"method": {"regularisation": 0.095}},
    }  # The recipes have batches of 512 images. FroSSL's term is divided by the batch size, LeJEPA's multiplied by it.
    assert {json.dumps({**config.to_dict(), **settings}, sort_keys=True) for config in same} == {
        json.dumps({**same[-1].to_dict(), **settings}, sort_keys=True)
    }
    for recipe in table.recipes:
        kind = recipe.config.method, recipe.config.set
        tried = [trial for trial in trials.recipes if (trial.config.method, trial.config.set) == kind]
        rates = [trial.config.lr for trial in tried]
        assert len(set(rates)) >= 5
        assert recipe.config.lr in rates
        assert resolve(recipe.run_of(0)).set["method"]["lr"] == recipe.config.lr
        records = [read_record(path.parent) for trial in tried for path in trials.records(trial).rglob("record.json")]
        if len(records) >= 6:
            best = max(records, key=lambda record: record["last"]["knn"])
            assert best["config"]["set"]["method"]["lr"] == recipe.config.lr, recipe.name
