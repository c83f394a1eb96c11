"""Runs that are resumed with another number of epochs, and checkpoints that are kept on the way."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from test_bad_input import bench, done, files, refused
from test_durable import same, when_logged
from test_run import parts_of

from idaa_lightly import VAE
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.lengthen import _fitting_asks
from idaa_lightly.plugin import FitContext
from idaa_lightly_plugins.augmentations.clae import CLAE
from idaa_lightly_plugins.methods.recipe import LightlyRecipe
from idaa_lightly_plugins.methods.simclr import SimCLR

RUN = ("run", "--data", "folder:images", "--backbone", "resnet9-w2", "--batch-size", 36, "--accelerator", "cpu")
CONSTANT = (*RUN, "--aug", "clae", "--set", "aug.random=true", "--set", "method.schedule=constant")
"""Random directions have noise to restore."""
LONG, SHORT = 15, 5
"""Epochs. After the longer training, evaluations are two epochs apart; after the shorter one, one epoch."""


@pytest.fixture(scope="module")
def runs(folder: Path, made_once: Callable[..., Path]) -> Path:
    """Directory with the images, a run of `LONG` epochs, and one of `SHORT` epochs that keeps two checkpoints."""

    def train(root: Path) -> None:
        root.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            Path("images").symlink_to(folder)
            done(bench(*CONSTANT, "--epochs", LONG, "--out", "long"))
            done(bench(*CONSTANT, "--epochs", SHORT, "--out", "short", "--save-every", 2))

    return made_once("lengthened", train)


@pytest.fixture(autouse=True)
def own_runs(runs: Path, own_place: None) -> None:
    Path("images").symlink_to((runs / "images").resolve())
    shutil.copytree(runs / "short", "short")


def resumed(epochs: int, *options: object, out: str = "short") -> Result:
    return bench(*CONSTANT, "--epochs", epochs, "--out", out, "--resume", *options)


def histories(*runs: Path | str) -> list[Any]:
    return [json.loads(Path(run, "record.json").read_text())["history"] for run in runs]


def test_a_lengthened_run_is_one_run_of_that_length(runs: Path) -> None:
    kept = {name: Path("short", f"{name}").read_bytes() for name in ("record.json", "backbone.pt")}
    output = done(resumed(LONG)).stdout
    assert f"Going on to {LONG} epochs instead of {SHORT}." in output
    assert "short/record.json is kept as record-5-epochs.json." in output
    assert f"Resuming after epoch {SHORT}." in output
    assert [entry["epoch"] for entry in histories("short")[0]] == [0, 2, 4, 6, 8, 10, 12, 14, 15]
    assert same(str(runs / "long"), "short")
    for name, content in kept.items():
        assert Path("short", name.replace(".", "-5-epochs.")).read_bytes() == content
    assert f"epochs = {LONG}\n" in Path("short/config.toml").read_text()
    assert "is finished already" in done(resumed(LONG)).stdout


@pytest.mark.slow
def test_an_interrupted_run_is_lengthened(runs: Path) -> None:
    shutil.rmtree("short")
    with when_logged("epoch 4/5", lambda: signal.raise_signal(signal.SIGTERM)):
        assert bench(*CONSTANT, "--epochs", SHORT, "--out", "short").exit_code == 143
    done(resumed(LONG))
    assert same(str(runs / "long"), "short")
    assert not list(Path("short").glob("*-5-epochs*"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["adopt", "atomic_write", "epoch 6/15", "epoch 8/15"])
def test_a_kill_while_a_run_is_lengthened(runs: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first moments are before the new last.ckpt, and between it and the new config.toml."""
    kept = {name: Path("short", name).read_bytes() for name in ("record.json", "backbone.pt")}
    if moment in ("adopt", "atomic_write"):
        with monkeypatch.context() as patch:
            patch.setattr(f"idaa_lightly.bench.run.loop.{moment}", lambda *_: signal.raise_signal(signal.SIGTERM))
            assert resumed(LONG).exit_code == 143
    else:
        with when_logged(moment, lambda: signal.raise_signal(signal.SIGTERM)):
            assert resumed(LONG).exit_code == 143
    assert not Path("short/record.json").exists()
    done(resumed(LONG))
    assert same(str(runs / "long"), "short")
    for name, content in kept.items():
        assert Path("short", name.replace(".", "-5-epochs.")).read_bytes() == content


@pytest.mark.slow
def test_a_damaged_checkpoint_while_a_run_is_lengthened(runs: Path) -> None:
    """The checkpoint before is then one of the shorter run."""
    with when_logged("epoch 6/15", lambda: signal.raise_signal(signal.SIGTERM)):
        resumed(LONG)
    Path("short/checkpoints/last.ckpt").write_bytes(b"")
    assert "Falling back to previous.ckpt" in done(resumed(LONG)).stdout
    assert same(str(runs / "long"), "short")


@pytest.mark.slow
def test_a_checkpoint_without_its_length_is_of_the_length_in_config_toml(runs: Path) -> None:
    for path in Path("short/checkpoints").iterdir():
        content = torch.load(path, weights_only=True)
        del content["idaa_lightly_epochs"]
        torch.save(content, path)
    done(resumed(LONG))
    assert same(str(runs / "long"), "short")


@pytest.mark.slow
def test_a_schedule_is_continued_at_its_new_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drop is at two thirds of the epochs. Its state in the checkpoint, and the rate, are those of the old one."""

    def optimizer(method: SimCLR, parameters: Any, epochs: int, steps: int) -> Any:
        made = torch.optim.AdamW(parameters, lr=method.lr)
        rates.append(made.param_groups[0])
        return made, torch.optim.lr_scheduler.MultiStepLR(made, [epochs * steps * 2 // 3])

    rates: list[dict[str, Any]] = []
    monkeypatch.setattr(SimCLR, "optimizer", optimizer)
    options = (*RUN, "--aug", "none", "--out", "dropped")
    with when_logged("epoch 3/3", lambda: signal.raise_signal(signal.SIGTERM)):
        assert bench(*options, "--epochs", 3).exit_code == 143  # The next step would have had the lower rate.
    done(bench(*options, "--epochs", 6, "--resume"))
    done(bench(*options[:-1], "whole", "--epochs", 6))
    assert same("dropped", "whole")
    assert rates[-1]["lr"] == pytest.approx(3e-5)


def fitted_by_the_epochs(augmentation: CLAE, context: FitContext) -> None:
    """Ask for the views and the progress first, and then for the number of epochs."""
    batches, step = context.views(8), context.progress("mean", 1)
    for _ in range(context.epochs):
        for _ in batches:
            step("")


def by_the_epochs(method: SimCLR, step: int, epochs: int, steps_per_epoch: int) -> None:
    if step:
        method.share = step / (epochs * steps_per_epoch)


@pytest.mark.parametrize(
    ("owner", "name", "function", "reason"),
    [
        (
            SimCLR,
            "optimizer",
            LightlyRecipe.optimizer,
            "its schedule depends on the number of epochs, so step 2 was trained with the learning rate 0.0002714, but "
            "would have been with 0.0002967",
        ),
        (
            CLAE,
            "fit",
            fitted_by_the_epochs,
            "the fitting of 'clae' depends on the number of epochs, unless its options set another number",
        ),
        (SimCLR, "before_step", by_the_epochs, "'simclr' prepares its steps by the number of epochs"),
    ],
    ids=["schedule", "fitting", "method"],
)
def test_what_depends_on_the_number_of_epochs_is_refused(
    owner: type, name: str, function: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, function)
    before = files()
    text = f"short was begun with 5 epochs and cannot be resumed with 15: {reason}. Train anew with another --out, or "
    refused(resumed(LONG), 2, text + "continue from its weights there by --weights short/checkpoints/last.ckpt")
    assert files() == before


@pytest.mark.parametrize(("options", "asks"), [({}, True), ({"vae_epochs": 3}, False), ({"vae": "vae.pt"}, False)])
def test_the_vae_depends_on_the_number_of_epochs_unless_it_has_its_own(options: dict[str, Any], asks: bool) -> None:
    VAE(16, bottleneck_dim=4, width=4).save("vae.pt")
    config = RunConfig(data="folder:images", backbone="resnet9-w2", batch_size=36, set={"aug": options})
    assert _fitting_asks(parts_of(config)) == asks


def test_fewer_epochs_than_trained_are_refused() -> None:
    refused(resumed(4), 2, "epochs is 4, but short has trained 5 already: give a larger number")
    refused(
        bench(*CONSTANT, "--epochs", 9, "--out", "short"),
        1,
        "short holds another run (epochs 5 there, 9 here): add --resume to go on to that number of epochs, or choose",
    )


def test_kept_checkpoints_are_evaluated_and_exported(runs: Path) -> None:
    names = sorted(path.name for path in Path("short/checkpoints").iterdir())
    assert names == ["epoch-00002.ckpt", "epoch-00004.ckpt", "last.ckpt", "previous.ckpt"]
    path = Path("short/checkpoints/epoch-00004.ckpt")
    content = torch.load(path, weights_only=True)
    assert content["epoch"] + 1 == 4
    torch.testing.assert_close(
        content["state_dict"],
        torch.load(path.with_name("previous.ckpt"), weights_only=True)["state_dict"],
        rtol=0,
        atol=0,
    )
    done(bench("export", path, "--out", "x.pth"))
    exported, last = (torch.load(name, weights_only=True) for name in ("x.pth", "short/backbone.pt"))
    assert exported.keys() == last.keys()
    assert torch.equal(exported["conv1.weight"], content["state_dict"]["method.backbone.conv1.weight"])
    assert not torch.equal(exported["conv1.weight"], last["conv1.weight"])
    for command in (["knn"], ["linear"], ["embed", "--out", "x.npz"]):
        done(bench(command[0], path, *command[1:]))
    content["state_dict"].pop("method.backbone.conv1.weight")
    torch.save(content, path)
    refused(bench("export", path, "--out", "y.pth"), 1, f"{path} does not fit the backbone resnet9-w2")


@pytest.mark.slow
def test_keeping_checkpoints_changes_no_result_and_is_no_other_run() -> None:
    done(bench(*CONSTANT, "--epochs", SHORT, "--out", "again"))
    assert same("short", "again")
    assert "is finished already" in done(resumed(SHORT, "--save-every", 3)).stdout
