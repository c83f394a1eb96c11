from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from scipy import stats
from test_bad_input import bench, done, refused
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly import AdversarialLoss, PixelSpace, RandomDirection, ViewGenerator, dual_batchnorm, registry
from idaa_lightly.bench.ablate.budget import rounds_within
from idaa_lightly.bench.ablate.rows import ALONE, COMPUTE, at_equal_compute, rows_of, trials_of
from idaa_lightly.bench.ablate.schema import Ablation, RowResult
from idaa_lightly.bench.ablate.statistics import differences, residual_variance, sampling_error
from idaa_lightly.bench.ablate.study import ablate
from idaa_lightly.bench.ablate.verdict import contrasts_of, paragraph, strongest
from idaa_lightly.bench.config import RunConfig, read_toml
from idaa_lightly.bench.record import read_record
from idaa_lightly.bench.run.setup import resolve
from idaa_lightly.bench.schema import read_json
from idaa_lightly.bench.sweep.plan import Run
from idaa_lightly.errors import UsageError
from idaa_lightly.registry import load
from idaa_lightly.variants import SharedBatchNormLoss, UnperturbedLoss

TINY = RunConfig(
    aug="oucl", limit_train=64, backbone="resnet9-w2", batch_size=32, epochs=1, accelerator="cpu", views="device"
)
ROOT = Path(__file__).parents[1]
X0, X1 = torch.randn(2, 6, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
UNCHANGED = ViewGenerator(PixelSpace(), RandomDirection(0.0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(288, 4)).double()


def step(loss: AdversarialLoss, model: nn.Module) -> tuple[Any, list[Tensor]]:
    output = loss(model, X0, X1)
    output.total.backward()
    return output, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", ["simclr", "dcl", "debiased", "hcl", "uel", "plain", "barlowtwins", "vicreg"])
def test_no_perturbation_through_the_first_batchnorm_is_a_term_of_the_first_output(name: str) -> None:
    """The gradients are those of an attack of size 0, which needs further forward passes."""
    torch.manual_seed(0)
    criterion = load("method", name)(nn.Identity(), 4).loss
    cheap, dear = network(), network()
    one, gradients = step(UnperturbedLoss(criterion, 0.7), cheap)
    other, wanted = step(SharedBatchNormLoss(criterion, UNCHANGED, 0.7), dear)
    torch.testing.assert_close(one[:3], other[:3])
    assert any(gradient.abs().max() > 1e-4 for gradient in wanted)
    torch.testing.assert_close(gradients, wanted)


def test_no_perturbation_through_the_second_batchnorm() -> None:
    plugin = load("augmentation", "unperturbed")(weight=0.7, branch="adversarial")
    method = load("method", "simclr")(nn.Identity(), 4)
    models = [dual_batchnorm(network()) for _ in range(2)]
    method.loss = NTXentLoss()
    one, gradients = step(plugin.loss(method), models[0])
    other, wanted = step(AdversarialLoss(NTXentLoss(), UNCHANGED, 0.7), models[1])
    torch.testing.assert_close(one[:3], other[:3])
    torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize(("branch", "passes"), [("clean", 2), ("adversarial", 3)])
def test_operations_of_the_unperturbed_view(branch: str, passes: int) -> None:
    method = load("method", "simclr")(nn.Identity(), 4)
    method.loss = lambda one, other: (one - other).square().sum()  # without counted operations
    model = dual_batchnorm(network())
    counts = []
    for function in (
        lambda: model(X0),
        lambda: load("augmentation", "unperturbed")(branch=branch).loss(method)(model, X0, X1),
    ):
        with FlopCounterMode(display=False) as counter:
            function()
        counts.append(counter.get_total_flops())
    assert counts[1] == passes * counts[0]


def test_rows_of_an_adversarial_third_view() -> None:
    config = RunConfig(aug="clae", set={"aug": {"eps": "0.1", "weight": "0.5"}, "method": {"temperature": 0.2}})
    rows, missing = rows_of(config)
    assert not missing
    named = {row.name: row for row in rows}
    assert [row.name for row in rows if row.adds] == [
        ALONE, "unperturbed view, second BatchNorm", "random direction", "clae",
    ]  # fmt: skip
    assert {row.kind for row in rows} == {"alone", "control", "variant", "candidate"}
    assert named[ALONE].config == RunConfig(aug="none", set={"method": {"temperature": 0.2}})
    third = named["third ordinary view, second BatchNorm"].config
    assert (third.aug, third.set["aug"]) == ("third", {"weight": 0.5, "branch": "adversarial"})
    assert named["random direction"].config.set["aug"] == {"eps": "0.1", "weight": "0.5", "random": True}
    assert named["search with one BatchNorm"].config.set["aug"]["mode"] == "shared"
    assert len(rows) == 8


@pytest.mark.parametrize("method", ["simsiam", "byol", "moco", "nnclr"])
def test_methods_without_a_uniformity_row(method: str) -> None:
    rows, missing = rows_of(RunConfig(method=method, aug="clae"))
    assert [row.name for row in rows if "unperturbed" in row.name] == ["unperturbed view, second BatchNorm"]
    assert missing == [
        f"There is no row 'unperturbed view, first BatchNorm' for {method}: its loss compares the outputs of two "
        "different networks or heads, so that of a view with itself is no uniformity term."
    ]


def test_rows_of_a_network_without_batchnorm() -> None:
    """Both BatchNorms are the same then. SimSiam's heads have BatchNorms of their own."""
    rows, missing = rows_of(RunConfig(aug="clae", backbone="vit_b_16", image_size=32))
    assert [row.name for row in rows if "BatchNorm" in row.name] == [
        "third ordinary view, second BatchNorm", "unperturbed view, second BatchNorm",
    ]  # fmt: skip
    assert len(missing) == 3
    assert missing[0] == (
        "There is no row 'third ordinary view, first BatchNorm' for simclr: without BatchNorm it is another row."
    )
    rows, _ = rows_of(RunConfig(method="simsiam", aug="clae", backbone="vit_b_16", image_size=32))
    assert "search with one BatchNorm" in [row.name for row in rows]


def test_rows_of_a_view_that_replaces_the_second_one() -> None:
    rows, _ = rows_of(RunConfig(aug="idaa", set={"aug": {"place": "replace", "search": "network"}}))
    assert [row.name for row in rows] == [
        ALONE, "second view, second BatchNorm", "random direction", "search with one BatchNorm", "untrained network",
        "search by gradient", "idaa",
    ]  # fmt: skip


def test_rows_of_a_plugin_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_files", {})  # so that other tests do not see its plugins
    code = re.findall(r"```python\n(.*?)```", (ROOT / "plugins/README.md").read_text(), re.DOTALL)
    Path("views.py").write_text(code[0] + code[1])
    command = ("ablate", "--plugin", "views.py", "--aug", "compared-brightness", "--set", "aug.eps=0.5", "--dry-run")
    made = [Path(line) for line in done(bench(*command, "--out", "study")).stdout.splitlines()]
    assert "eps = 0.25" in Path("study/rows/half-as-strong.toml").read_text()
    assert len(made) == 9
    assert {RunConfig(**read_toml(path)).aug for path in made} == {
        "none", "third", "unperturbed", "compared-brightness",
    }  # fmt: skip


def test_a_control_with_an_unknown_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_files", {})
    code = re.findall(r"```python\n(.*?)```", (ROOT / "plugins/README.md").read_text(), re.DOTALL)
    Path("views.py").write_text(code[0] + code[1].replace('"eps"', '"epss"'))
    result = bench("ablate", "--plugin", "views.py", "--aug", "compared-brightness", "--dry-run", "--out", "study")
    assert "Error: control 'half as strong' of 'compared-brightness': 'compared-brightness' has no option 'epss'" in (
        " ".join(result.stderr.split())
    )


def test_rounds_within_a_budget() -> None:
    assert rounds_within(1e6, TINY, Path("study"), range(3), {}, 1) == 3
    with pytest.raises(UsageError, match=r"--budget is 10 s, but one round with its trials takes about \d+ (s|min)"):
        rounds_within(1e-3, TINY, Path("study"), range(3), {"lr": ["1", "2"]}, 1)


def test_ladder_of_a_search_with_one_batchnorm() -> None:
    rows, _ = rows_of(RunConfig(aug="clae", set={"aug": {"mode": "shared"}}))
    assert [row.name for row in rows if row.adds][1] == "unperturbed view, first BatchNorm"
    assert "search with one BatchNorm" not in [row.name for row in rows]


@pytest.mark.parametrize(
    ("aug", "names"),
    [
        ("metaug", [ALONE, "NT-Xent at OUCL's temperature", "OUCL alone", "metaug"]),
        ("oucl", [ALONE, "NT-Xent at OUCL's temperature", "oucl"]),
        ("third", [ALONE, "third"]),
        ("hvp", [ALONE, "random pair", "hvp"]),
        ("viewmaker", [ALONE, "unperturbed view, second BatchNorm", "untrained generator", "viewmaker"]),
        ("pinda", [ALONE, "unperturbed view, second BatchNorm", "untrained generator", "pinda"]),
    ],
)
def test_ladders_of_other_kinds(aug: str, names: list[str]) -> None:
    rows, _ = rows_of(RunConfig(aug=aug))
    assert [row.name for row in rows if row.adds] == names


def test_temperature_of_the_control_of_oucl() -> None:
    rows, _ = rows_of(RunConfig(aug="oucl", set={"method": {"temperature": 0.5}}))
    control = next(row for row in rows if row.kind == "control")
    assert control.config.set["method"] == {"temperature": 0.125}  # 16 (cos + 1) / 2 = cos / 0.125 + constant
    assert len({config.key() for _, config in trials_of(control, {"temperature": ["0.1", "0.2"]})}) == 1
    rows, missing = rows_of(RunConfig(method="barlowtwins", aug="oucl"))
    assert len(rows) == 2
    assert missing == [
        'There is no row "NT-Xent at OUCL\'s temperature" for barlowtwins: it has no option `temperature`.'
    ]


def test_the_baseline_is_not_ablated() -> None:
    with pytest.raises(UsageError, match="--aug is none, which is what augmentations are compared with"):
        rows_of(RunConfig(aug="none"))


def test_every_row_gets_the_same_trials() -> None:
    rows, _ = rows_of(RunConfig(aug="clae"))
    for row in rows:
        trials = trials_of(row, {"temperature": ["0.1", "0.2"], "lr": ["1e-3"]})
        assert [chosen for chosen, _ in trials] == [{"temperature": t, "lr": "1e-3"} for t in ("0.1", "0.2")]
        assert {config.evaluate_on for _, config in trials} == {"validation"}
        assert [config.set["method"]["temperature"] for _, config in trials] == ["0.1", "0.2"]
        assert all(config.set.get("aug") == row.config.set.get("aug") for _, config in trials)


def test_epochs_at_equal_compute() -> None:
    rows, _ = rows_of(RunConfig(aug="clae"))
    found = at_equal_compute(rows[0], 100.0, 2660.0)
    assert (found.name, found.config.aug, found.config.epochs) == (COMPUTE, "none", 27)


def test_residual_variance_by_hand() -> None:
    """Row means 2 and 5, seed means 2, 3.5 and 5, mean 3.5: residuals are ±0.5, 0 and ±0.5."""
    values = {"a": [1.0, 2.0, 3.0], "b": [3.0, 5.0, 7.0]}
    assert residual_variance(values) == (pytest.approx(4 * 0.25 / 2), 2)
    assert residual_variance({"a": [1.0], "b": [2.0]}) == (0.0, 0)
    common = {
        name: [value + shift for value, shift in zip(part, (0, 100, -7), strict=True)] for name, part in values.items()
    }
    assert residual_variance(common)[0] == pytest.approx(0.5)


def test_differences_by_hand() -> None:
    values = {"a": [1.0, 2.0, 3.0], "b": [3.0, 5.0, 7.0]}
    (found,) = differences(values, [("b", "a")])
    half = stats.t.ppf(0.975, 2) * np.sqrt(2 * 0.5 / 3)
    assert found == pytest.approx((3.0, 3 - half, 3 + half))
    three = differences(values, [("b", "a"), ("a", "b"), ("a", "a")])
    wide = stats.t.ppf(1 - 0.05 / 6, 2) * np.sqrt(2 * 0.5 / 3)
    assert three[1] == pytest.approx((-3.0, -3 - wide, -3 + wide))
    assert differences({"a": [1.0], "b": [2.0]}, [("a", "b")]) == [(-1.0, None, None)]


def test_intervals_hold_simultaneously() -> None:
    """With eight equal rows and five seeds, all three intervals contain 0 in 95 % of 2 000 experiments or more."""
    random = np.random.default_rng(0)
    kept = 0
    for _ in range(2000):
        table = random.normal(size=(8, 1, 5))[:, 0] + random.normal(size=5)
        found = differences(
            {str(row): list(part) for row, part in enumerate(table)}, [("0", "1"), ("0", "2"), ("0", "3")]
        )
        kept += all(part.low is not None and part.high is not None and part.low <= 0 <= part.high for part in found)
    assert 0.945 < kept / 2000 < 0.98  # one standard error is 0.005


def test_sampling_error_by_hand() -> None:
    assert sampling_error(0.5, 10_000) == pytest.approx(0.005)


def results(alone: float, control: float | None, compute: float, seeds: int = 5) -> Ablation:
    """Return an ablation whose candidate has 50 %, and whose residual variance is small."""
    wobble = [0.01 * (-1) ** number for number in range(seeds)]
    means = {"alone": alone, "control": control, "candidate": 50.0, "compute": compute}
    rows = [
        RowResult(
            name={"alone": ALONE, "compute": COMPUTE}.get(kind, kind), kind=kind, adds="search", aug="clae", options="",
            epochs=1, values=[value + part * (kind == "alone") for part in wobble], others={}, flops=1.0,
            folders=[f"{kind}/seed-0"],
        )
        for kind, value in means.items() if value is not None
    ]  # fmt: skip
    made: Ablation = {
        "schema": 1, "method": "simclr", "aug": "clae", "data": "digits", "metric": "knn", "evaluate_on": "test",
        "seeds": list(range(seeds)), "rows": rows, "contrasts": contrasts_of(rows), "trials": [],
        "sampling_error": 1.0, "images": 360, "verdict": "", "notes": [],
    }  # fmt: skip
    return made


HELPS, ALONE_BETTER = "Verdict: It helps at equal epochs, ", "At equal compute, the method alone is better."
EXPLAINED = "and no control explains the gain: it comes from the search. "
SAME = "At equal compute, it is not told apart from the method alone."


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((40, 45, 45), HELPS + EXPLAINED + "It also wins at equal compute."),
        ((40, 50, 50), f"{HELPS}but is not above 'control': the gain is not shown to come from the search. {SAME}"),
        ((40, 45, 60), HELPS + EXPLAINED + ALONE_BETTER),
        ((50, 40, 50), f"Verdict: No effect is shown at equal epochs. {SAME}"),
        ((60, 40, 60), f"Verdict: It hurts at equal epochs. {ALONE_BETTER}"),
        ((40, None, 45), f"{HELPS}but it declares no controls, so nothing says which part of it helps. It also wins"),
        ((40, 45, 45, 4), "Not enough seeds for a verdict: 4 of 5."),
    ],
)
def test_verdicts(figures: tuple[Any, ...], text: str) -> None:
    assert text in paragraph(results(*figures))


def test_figures_in_the_paragraph() -> None:
    result = results(40, 45, 45)
    found, (alone, *_) = paragraph(result), result["contrasts"]
    assert "simclr × clae on digits, 5 seeds, 1 epoch: kNN is 50.00 on 360 test images after the last epoch." in found
    interval = f"[{alone['low']:+.2f}, {alone['high']:+.2f}]"
    assert f"The differences are +10.00 points {interval}, above 'method alone'; +5.00 points" in found
    assert "standard error of 1.00 points for one accuracy. The intervals do not contain it." in found
    single = paragraph(results(40, 45, 45, 1))
    assert "The differences are +9.99 points to 'method alone'" in single
    assert "intervals" not in single


def test_an_interval_below_the_strongest_control_is_no_finding() -> None:
    """The control was chosen because it is high. Below the method alone, which is fixed, is one."""
    found = paragraph(results(60, 60, 45))
    assert re.search(r"-\d+\.\d+ points \[[^]]*\], not above 'control'", found)
    assert re.search(r"-\d+\.\d+ points \[[^]]*\], below 'method alone'", found)


def test_rows_with_the_same_runs_count_once_in_the_variance() -> None:
    result = results(40, 45, 40)
    alone, control, candidate, compute = result["rows"]
    shared = [alone, control, candidate, compute | {"values": alone["values"], "folders": alone["folders"]}]
    variance, freedom = residual_variance({row["name"]: row["values"] for row in (alone, control, candidate)})
    half = stats.t.ppf(1 - 0.025 / 3, freedom) * (2 * variance / 5) ** 0.5
    for part in contrasts_of(shared):
        assert (part["low"], part["high"]) == pytest.approx((part["center"] - half, part["center"] + half))


def test_the_strongest_control_is_judged() -> None:
    result = results(40, 45, 45)
    for name, kind, value in (("other", "control", 46.0), ("variant", "variant", 49.0)):
        row = result["rows"][1] | {"name": name, "kind": kind, "values": [value] * 5, "folders": [f"{name}/seed-0"]}
        result["rows"].append(row)
    best = strongest(result["rows"])
    assert best is not None
    assert best["name"] == "other"
    assert [part["name"] for part in contrasts_of(result["rows"])] == [ALONE, "other", COMPUTE]


@pytest.mark.slow
def test_a_whole_ablation() -> None:
    """All rows are tuned on the validation images and trained. Nothing is trained twice."""

    def execute(runs: list[Run]) -> None:
        """Execute the runs in this process."""
        for item in dict.fromkeys(runs):
            assert not bench(*item.arguments).exit_code

    out, tune = Path("study"), {"temperature": ["0.1", "0.5"]}
    found = ablate(TINY, out, execute, seeds=[0, 1], tune=tune)
    assert [row["name"] for row in found["rows"]] == [*(row.name for row in rows_of(TINY)[0]), COMPUTE]
    alone = next(float(trial["options"]["temperature"]) for trial in found["trials"] if trial["chosen"])
    for row in found["rows"]:
        records = [read_record(out / folder) for folder in row["folders"]]
        assert row["values"] == [100 * record["last"]["knn"] for record in records]
        assert [record["config"]["seed"] for record in records] == [0, 1]
        trials = [trial for trial in found["trials"] if trial["row"] == row["name"]]
        assert len(trials) == 2 * (row["kind"] != "compute")
        for trial in trials:
            assert trial["value"] <= next(other["value"] for other in trials if other["chosen"])
        for record in records:
            assert record["config"].get("evaluate_on", "test") == "test"
            temperatures = [float(trial["options"]["temperature"]) for trial in trials if trial["chosen"]]
            expected = {"control": [0.125], "compute": [alone]}.get(row["kind"], temperatures)
            assert [record["config"]["set"]["method"]["temperature"]] == expected
    for row in found["rows"]:  # The files hold what was tuned, and the row at equal compute, too.
        name = re.sub(r"[^a-z0-9]", "-", row["name"].lower())
        config = resolve(RunConfig(**read_toml(out / f"rows/{name}.toml"))).to_dict()
        trained = RunConfig(**read_toml(out / row["folders"][0] / "config.toml")).to_dict()
        assert {key for key in config.keys() | trained.keys() if config.get(key) != trained.get(key)} == {"image_size"}
    # Both trials of the control are one run, because they cannot change its temperature. The method alone has the
    # operations of the candidate, so its runs serve the last row, too.
    assert len(list(out.rglob("record.json"))) == 2 + 1 + 2 + 3 * 2

    def refuse(runs: list[Run]) -> None:
        assert all(run.finished for run in runs)

    assert ablate(TINY, out, refuse, seeds=[0, 1], tune=tune) == found
    assert rounds_within(1e-3, TINY, out, [0, 1], tune, 1) == 2  # Finished runs take no time.
    changed = out / found["rows"][0]["folders"][0] / "record.json"
    record = json.loads(changed.read_text())
    changed.write_text(json.dumps(record | {"git_commit": "c0ffee"}))
    (note,) = ablate(TINY, out, refuse, seeds=[0, 1], tune=tune)["notes"]
    assert note.startswith("Warning: the runs differ in commit (")


@pytest.mark.slow
def test_an_ablation_by_rankme_names_the_training_images() -> None:
    def execute(runs: list[Run]) -> None:
        for item in dict.fromkeys(runs):
            assert not bench(*item.arguments).exit_code

    found = ablate(TINY, Path("study"), execute, seeds=[0], metric="rankme")
    assert found["images"] == TINY.limit_train
    assert f" on {TINY.limit_train} training images after the last epoch." in found["verdict"]


@pytest.mark.slow
def test_the_command_and_the_report() -> None:
    command = ["ablate", "--aug", "third", "--limit-train", "64", "--backbone", "resnet9-w2", "--batch-size", "32"]
    shown = done(bench(*command, "--epochs", "2", "--seeds", "0-1", "--jobs", "2", "--out", "study")).stdout
    found: Ablation = read_json(Path("study/ablation.json"), Ablation, "an ablation", (1,))
    assert found["verdict"] in shown
    assert [row["kind"] for row in found["rows"]] == ["alone", "candidate", "compute"]
    assert [row["epochs"] for row in found["rows"]] == [2, 2, 3]
    assert found["rows"][1]["flops"] / found["rows"][0]["flops"] == pytest.approx(1.5, rel=0.01)
    assert {path.name for path in Path("study").glob("*.*")} >= {
        "ablation.md", "contrasts.svg", "contrasts.png", "waterfall.svg", "waterfall.png",
    }  # fmt: skip
    done(bench("run", "--config", "study/rows/third.toml", "--dry-run"))
    done(bench("report", "study", "--out", "report.html"))
    page = Path("report.html").read_text()
    assert found["verdict"].split(".")[0] in page
    assert page.count("What each step of the ladder adds") == 2  # as a caption and as an alternative text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--tune", "aug.eps=0.1,0.2"], "would give it more trials than the method alone"),
        (["--tune", "method.lr=0.1", "--lr", "0.1"], "--lr and --tune method.lr exclude each other"),
        (["--budget", "soon"], "--budget is 'soon', but expected a time such as 90min, 2h or 1d"),
        (["--budget", "1s"], "--budget is 10 s, but one round with its trials takes about"),
        (["--aug", "none"], "--aug is none, which is what augmentations are compared with"),
        (["--tune", "method.heat=1"], "no option 'heat'"),
    ],
)
def test_refusals(options: list[str], text: str) -> None:
    refused(bench("ablate", "--aug", "clae", "--limit-train", "64", "--backbone", "resnet9-w2", *options), 2, text)
    assert not list(Path().rglob("record.json"))
