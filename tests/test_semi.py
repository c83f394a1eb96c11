"""Semi-supervised runs: FixMatch with an adversarial strong view."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from lightly.transforms.multi_view_transform import MultiViewTransform
from records import a_record, interrupted
from torch import Tensor, nn

from idaa_lightly import CLAE, adversarial_batchnorm, dual_batchnorm, strip_dual_batchnorm
from idaa_lightly.batchnorm import DualBatchNorm
from idaa_lightly.bench.arms import read_records
from idaa_lightly.bench.config import RunConfig, read_recipe
from idaa_lightly.bench.detect.config import DetectConfig
from idaa_lightly.bench.evaluate.store import find_runs, runs_below
from idaa_lightly.bench.record import finished_runs, unfinished_runs
from idaa_lightly.bench.run.setup import read_data
from idaa_lightly.bench.semi.config import SemiConfig
from idaa_lightly.bench.semi.fixmatch import FixMatch, FixMatchLoss
from idaa_lightly.bench.semi.network import WideResNet
from idaa_lightly.bench.semi.results import table
from idaa_lightly.bench.semi.setup import make_semi_parts, resolve
from idaa_lightly.cli import main
from idaa_lightly.errors import UsageError
from idaa_lightly.losses import AdversarialLoss
from idaa_lightly.splits import balanced, validation_split
from idaa_lightly.variants import ReplacingLoss

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "benchmarks" / "semi" / "recipes.toml"
TINY = "--labels 6 --backbone wrn-10-1 --batch-size 2 --accelerator cpu --set method.ema=0.5 --set method.threshold=0"


def method(**options: Any) -> FixMatch:
    """Return FixMatch for three classes on a small network."""
    torch.manual_seed(0)
    return FixMatch(WideResNet("wrn-10-1"), 64, 3, **options)


def bench(folder: Path, *options: object) -> Result:
    """Call `idaa-bench semi` on an image folder."""
    given = ["semi", "--data", f"folder:{folder}", *TINY.split(), *map(str, options)]
    return CliRunner().invoke(main, given)


def test_the_consistency_loss_by_hand() -> None:
    confident, unsure = [4.0, 0.0, 0.0], [0.5, 0.0, 0.0]  # probabilities 0.965 and 0.452 of class 0
    anchor = torch.tensor([confident, unsure], requires_grad=True)
    strong = torch.tensor([[0.0, 1.0, 0.0], [9.0, 0.0, 0.0]], requires_grad=True)
    loss = method().loss(anchor, strong)
    # −log softmax([0, 1, 0])[0] = log(2 + e) = 1.5514; the unsure image counts as 0 in a mean over 2.
    assert float(loss.detach()) == pytest.approx(1.5514 / 2, abs=1e-4)
    loss.backward()
    assert anchor.grad is None  # The pseudo-label is fixed.
    assert strong.grad is not None
    assert strong.grad[0].any()
    assert not strong.grad[1].any()


class Linear(nn.Module):
    """Stand-in for FixMatch without BatchNorm: logits are the three pixels of an image."""

    weight = 2.0
    confident = FixMatch.confident
    loss = FixMatch.loss
    threshold = 0.9

    def forward(self, images: Tensor) -> Tensor:
        """Return the pixels as logits."""
        return images.flatten(1)


def test_all_terms_by_hand() -> None:
    model: Any = Linear()
    pixels = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [4.0, 0.0, 0.0]], requires_grad=True)
    labelled, strong, weak = pixels.view(3, 1, 3, 1, 1)
    clae = CLAE(0.5)
    for attack, total in (
        (nn.Identity(), lambda clean, attacked: 2 * clean),
        (AdversarialLoss(model.loss, clae, 0.5), lambda clean, attacked: 2 * clean + 2 * 0.5 * attacked),
        (ReplacingLoss(model.loss, clae), lambda clean, attacked: 2 * attacked),
    ):
        output = FixMatchLoss(model, attack)(model, labelled, torch.tensor([2]), strong, weak)
        supervised, clean = 1.0986, 1.5514  # log 3, and log(2 + e)
        attacked = 2.4076  # x' = [−0.5, 1.5, 0.5]: log(e^−0.5 + e^1.5 + e^0.5) + 0.5
        assert float(output.supervised) == pytest.approx(supervised, abs=1e-4)
        assert float(output.total.detach()) == pytest.approx(supervised + total(clean, attacked), abs=1e-3)
        if output.views is not None:
            assert output.views.flatten().tolist() == [-0.5, 1.5, 0.5]
            assert float(output.adversarial) == pytest.approx(attacked, abs=1e-3)
    model.threshold = 0.99  # Without a confident pseudo-label there is nothing to attack.
    output = FixMatchLoss(model, AdversarialLoss(model.loss, clae))(model, labelled, torch.tensor([2]), strong, weak)
    assert torch.equal(output.views, strong)
    assert float(output.total.detach()) == pytest.approx(1.0986, abs=1e-4)
    assert float(output.confident) == 0


def test_an_attack_leaves_no_trace_in_clean_statistics() -> None:
    clean, attacked = method(threshold=0.0), method(threshold=0.0)
    dual_batchnorm(attacked)
    images = torch.randn(12, 3, 16, 16).split(4)
    batch = (images[0], torch.tensor([0, 1, 2, 0]), images[1], images[2])
    FixMatchLoss(clean, nn.Identity())(clean, *batch)
    FixMatchLoss(attacked, AdversarialLoss(attacked.loss, CLAE()))(attacked, *batch)
    attacked.threshold = 1.0  # No image is confident, so no view moves.
    assert torch.equal(
        FixMatchLoss(attacked, AdversarialLoss(attacked.loss, CLAE()))(attacked, *batch).views, images[1]
    )
    FixMatchLoss(clean, nn.Identity())(clean, *batch)
    for (name, one), other in zip(clean.named_buffers(), attacked.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_the_labelled_images_are_balanced_and_depend_on_the_seed() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=torch.Generator())]
    first, again, other = balanced(labels, 12, 1), balanced(labels, 12, 1), balanced(labels, 12, 2)
    assert labels[first].bincount().tolist() == labels[other].bincount().tolist() == [4, 4, 4]
    assert torch.equal(first, again)
    assert set(first.tolist()) != set(other.tolist())
    assert sorted(labels[balanced(labels, 13, 1)].bincount().tolist()) == [4, 4, 5]
    assert torch.equal(balanced(labels, 12), balanced(labels, 12, 0))


def test_averages_of_both_branches_and_the_stripped_network() -> None:
    model = method(ema=0.75)
    dual_batchnorm(model)
    norm, averaged = (
        next(part for part in module.modules() if isinstance(part, DualBatchNorm))
        for module in (model.backbone, model.averaged)
    )
    model.averaged.update_parameters(model.backbone)  # The first call copies.
    for branch in (norm.clean, norm.adversarial):
        nn.init.constant_(branch.weight, 5.0)
    nn.init.constant_(norm.adversarial.bias, 8.0)
    norm.clean.running_mean.fill_(4.0)
    model.averaged.update_parameters(model.backbone)
    assert averaged.clean.weight.unique().tolist() == averaged.adversarial.weight.unique().tolist() == [2.0]
    assert (averaged.clean.bias.unique().tolist(), averaged.adversarial.bias.unique().tolist()) == ([0.0], [2.0])
    assert averaged.clean.running_mean.unique().tolist() == [1.0]
    assert not any(part.requires_grad for part in model.averaged.parameters())
    network, images = model.averaged.module.eval(), torch.randn(2, 3, 16, 16)
    stripped = strip_dual_batchnorm(copy.deepcopy(network))
    with torch.no_grad(), adversarial_batchnorm(network):  # Eval mode always means the clean branch.
        assert torch.equal(stripped(images), network(images))
    plain = nn.Sequential(WideResNet("wrn-10-1"), nn.Linear(64, 3))
    plain.load_state_dict(stripped.state_dict())
    assert torch.equal(plain.eval()(images), stripped(images))


def test_views_and_the_schedule() -> None:
    model = method()
    transform = model.transform(16, {"mean": [0.0] * 3, "std": [1.0] * 3})
    assert isinstance(transform, MultiViewTransform)
    from PIL import Image

    strong, weak = transform(Image.new("RGB", (16, 16), (200, 150, 100)))
    assert weak.shape == strong.shape == (3, 16, 16)
    assert weak[:, 0, 0].tolist() == pytest.approx([200 / 255, 150 / 255, 100 / 255])
    assert (strong == 0).all(0).sum() >= 64  # the square of 8 px
    optimizer, scheduler = model.optimizer([{"params": list(model.parameters())}], 2, 8)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0]
    assert all(part.ndim == 1 for part in optimizer.param_groups[1]["params"])
    for _ in range(16):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(0.03 * 0.19509, rel=1e-4)  # cos(7π/16)


def test_wide_resnets_by_name() -> None:
    count = sum(part.numel() for part in nn.Sequential(WideResNet("wrn-28-2"), nn.Linear(128, 10)).parameters())
    assert count == 1_467_610  # 1.5 million, as in Oliver et al., 2018
    with pytest.raises(UsageError, match="backbone is 'wrn-12-2', but semi-supervised runs need wrn-DEPTH-WIDTH with"):
        WideResNet("wrn-12-2")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"aug": "oucl"}, "aug is 'oucl', but a semi-supervised run needs none or one that searches for a view of one"),
        (
            {"aug": "clae", "set": {"aug": {"mode": "half"}}},
            "mode is half, but a semi-supervised run needs --set aug.m",
        ),
        (
            {"aug": "clae", "method": "supervised"},
            "'supervised' has no views to attack, but aug is 'clae': use --aug no",
        ),
        (
            {"set": {"method": {"tau": 1}}},
            "'fixmatch' has no option 'tau'; it has: ratio, threshold, weight, ema, lr, ",
        ),
        ({"set": {"backbone": {"x": 1}}}, "backbone 'wrn-28-2' has no options: leave --set backbone.KEY out"),
        ({"method": "simclr"}, "method is 'simclr', but expected fixmatch or supervised"),
        ({"labels": 0}, "labels is 0, but expected int, 1 or more"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(replace(SemiConfig(aug="none"), **changes))
    assert text in str(error.value)


def test_recipes_can_be_run() -> None:
    for name in ("cifar100-400-idaa", "cifar100-10000-none", "small-250-supervised", "small-250-idaa-replace"):
        config = resolve(SemiConfig(**read_recipe(RECIPES, name, SemiConfig)))
        assert f"-{config.labels}-" in name
        assert config.lr is None
    assert config.set["aug"]["place"] == "replace"


def record(aug: str, seed: int, accuracy: float, **config: Any) -> Any:
    """Return a record of a run with 40 labels."""
    last = {"epoch": 1, "accuracy": accuracy}
    return a_record(
        config={"method": "fixmatch", "aug": aug, "seed": seed, "labels": 40, **config},
        last=last, history=[last], time={"train_s": 10.0, "images_per_s": 10.0, "flops_per_image": 3 * 10**9},
        labelled={"count": 40, "per_class": [4] * 10, "sha256": "a"},
    )  # fmt: skip


def test_the_table_pairs_seeds() -> None:
    runs = [record("none", 0, 0.5), record("none", 1, 0.6), record("clae", 0, 0.52), record("clae", 1, 0.64)]
    assert table(runs).splitlines()[2:] == [
        "| fixmatch × none | 0.30 | 55.00 ± 7.07 (2) |  |",
        "| fixmatch × clae | 0.30 | 58.00 ± 8.49 (2) | +3.00 [-9.71, +15.71] |",
    ]
    low = {"set": {"method": {"threshold": 0.5}}}
    runs += [record("none", 0, 0.4, **low), record("clae", 0, 0.45, **low)]
    assert table(runs).splitlines()[-1] == "| fixmatch × clae threshold=0.5 | 0.30 | 45.00 (1) | +5.00 |"
    rows = [line.split(" | ")[0] for line in table(runs).splitlines()]
    assert rows[-2:] == ["| fixmatch × clae", "| fixmatch × clae threshold=0.5"]
    weights = table([record("none", 0, value, set={"method": {"weight": value}}) for value in (1.0, 0.0)])
    assert weights.splitlines()[-1] == "| fixmatch × none weight=0.0 | 0.30 | 0.00 (1) | -100.00 |"


def test_each_command_finds_its_own_runs() -> None:
    """benchmarks/ holds runs of all three commands."""
    places = {RunConfig: "records", SemiConfig: "semi/records", DetectConfig: "detect/records"}
    found = {kind: finished_runs(ROOT / "benchmarks", kind) for kind in places}
    for kind, place in places.items():
        below = ROOT / "benchmarks" / place
        assert found[kind] == sorted(path.parent for path in below.rglob("record.json"))
    evaluated = [folder for family in find_runs([ROOT / "benchmarks"]) for folder in family.results]
    assert sorted(evaluated) == found[RunConfig]
    assert sorted(runs_below(ROOT / "benchmarks").values()) == found[RunConfig]
    for kind in places:
        Path(kind.__name__).mkdir()
        Path(kind.__name__, "config.toml").write_text(kind().to_toml())
        assert unfinished_runs(Path(), kind) == [Path(kind.__name__)]


def test_the_page_shows_the_committed_records() -> None:
    found = table(read_records(RECIPES.parent / "records", SemiConfig))
    assert found in (RECIPES.parent / "README.md").read_text()
    shown = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| fixmatch")]
    assert len(shown) == 2
    assert all(line in found for line in shown)


@pytest.mark.slow
def test_a_run_its_files_and_resuming_to_the_bit(folder: Path) -> None:
    options = ["--aug", "clae", "--epochs", 2, "--set", "method.ratio=4"]
    whole = bench(folder, *options, "--out", "whole")
    assert whole.exit_code == 0, whole.output
    assert "| fixmatch × clae | " in whole.stdout
    found = json.loads(Path("whole/record.json").read_text())
    assert found["labelled"]["per_class"] == [2, 2, 2]
    assert found["config"]["labels"] == 6
    assert found["last"] == found["history"][-1]
    keys = [[*entry] for entry in found["history"]]  # The test images are read at both ends.
    at_end = ["epoch", "accuracy_validation", "accuracy"]
    assert keys == [at_end, at_end[:2], at_end]
    # Six labels lie among 36 images, of which a tenth of each class is for validation.
    assert found["evaluation"]["accuracy_validation"] == "on 3 images whose labels are not trained on"
    names = {"config.toml", "record.json", "metrics.csv", "curves.png", "views.png", "model.pt", "checkpoints"}
    assert {path.name for path in Path("whole").iterdir()} == names
    assert "already holds this run, which is finished" in bench(folder, *options, "--out", "whole").output
    longer = bench(folder, "--aug", "clae", "--epochs", 3, "--set", "method.ratio=4", "--out", "whole")
    assert "whole holds another run (epochs 2 there, 3 here): choose another --out" in " ".join(longer.output.split())
    interrupted(Path("whole"), Path("part"))
    resumed = bench(folder, *options, "--out", "part", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "Resuming after epoch 1." in resumed.stdout
    one, other = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "part"))
    assert any(name.startswith("method.averaged.") for name in one["state_dict"])
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    assert Path("whole/metrics.csv").read_bytes() == Path("part/metrics.csv").read_bytes()
    twice = CliRunner().invoke(main, ["semi", "--table", "."])
    assert "fixmatch × clae has seed 0 more than once, but expected each seed once" in " ".join(twice.stderr.split())
    shown = CliRunner().invoke(main, ["semi", "--table", "whole", "--plot", "plot.svg"])
    assert shown.exit_code == 0
    assert "fixmatch × clae" in shown.stdout
    assert Path("plot.svg").exists()


def test_the_images_of_the_curve() -> None:
    """They are the images of the validation split whose labels are not trained on."""
    config = resolve(SemiConfig(aug="none", labels=100, batch_size=2, epochs=1, backbone="wrn-10-1", limit_train=200))
    data = read_data(config)
    parts, (_, held) = make_semi_parts(config, data), validation_split(data.train.labels)
    assert not set(held.tolist()) & set(parts.chosen.tolist())
    assert torch.equal(parts.validation.labels, data.train.labels[held])
    some = make_semi_parts(replace(config, labels=190), data).validation  # A tenth cannot stay unlabelled.
    assert 0 < len(some) <= 10
    assert len(make_semi_parts(replace(config, labels=200), data).validation) == 0
    held_out = replace(config, evaluate_on="validation", labels=80)
    data = read_data(held_out)
    assert make_semi_parts(held_out, data).validation is data.test


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--precision", "bf16-mixed"], ["--devices", 2, "--strategy", "ddp"]])
def test_half_precision_and_two_processes(folder: Path, options: list[object]) -> None:
    command = ["semi", "--data", f"folder:{folder}", *TINY.split(), "--aug", "clae", "--epochs", 1]
    command += ["--set", "method.ratio=4", *options, "--out", "run"]
    result = subprocess.run([sys.executable, "-m", "idaa_lightly.cli", *map(str, command)], stderr=subprocess.PIPE)
    assert result.returncode == 0, result.stderr.decode()
    found = json.loads(Path("run/record.json").read_text())
    assert found["device"]["count"] == (2 if "--devices" in options else 1)
    assert found["config"]["precision"] == ("bf16-mixed" if "--precision" in options else "32-true")
    assert found["time"]["flops_per_image"] > 0
    assert "accuracy" in found["last"]


@pytest.mark.slow
def test_messages_of_the_command(folder: Path) -> None:
    for options, text in (
        (["--labels", 2], f"labels is 2, but folder:{folder} has 3 classes and 36 training images: give a number"),
        (["--batch-size", 8], f"folder:{folder} has 36 training images, but a batch has 56 without labels, 7 for each"),
        (
            ["--plot", "a.png"],
            "--plot is a.png, but there is no --table DIRECTORY: add it, to say which runs are drawn",
        ),
        (
            ["--table", folder],
            f"{folder} holds no finished run of this command: expected one, or a folder of runs",
        ),
    ):
        result = bench(folder, "--aug", "none", *options)
        assert text in result.stderr
        assert result.exit_code in (1, 2)
