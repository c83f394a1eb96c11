"""Damaged checkpoints, weights and results that can be read, but are not those of the run."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bad_input import bench, done, files, refused, run
from test_durable import flip

from idaa_lightly import VAE
from idaa_lightly.backbones import create_backbone


@pytest.fixture(autouse=True)
def _no_plugin_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idaa_lightly.registry._files", {})


@pytest.fixture
def stopped(trained: Path) -> Path:
    """Run directory of a run that was interrupted after its only epoch."""
    Path(shutil.copytree(trained / "seed-0", "stopped"), "record.json").unlink()
    return Path("stopped")


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def moments(content: dict[str, Any]) -> dict[int, Any]:
    found: dict[int, Any] = content["optimizer_states"][0]["state"]
    return found


def evaluation(content: dict[str, Any]) -> dict[str, Any]:
    return next(state for state in content["callbacks"].values() if "history" in state)


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a rate that is no number": (
        lambda content: content["optimizer_states"][0]["param_groups"][0].update(lr="x"),
        "does not fit this run (optimizer_states.0.param_groups.0.lr is 'x')",
    ),
    "moments of another shape": (
        lambda content: moments(content)[0].update(exp_avg=torch.ones(7)),
        "does not fit this run (the optimiser's state.0.exp_avg is tensor([1., 1.,",
    ),
    "moments of another layout": (
        lambda content: moments(content)[0].update(exp_avg=moments(content)[0]["exp_avg"].to_sparse()),
        "does not fit this run (the optimiser's state.0.exp_avg is tensor(",
    ),
    "weights of another layout": (
        lambda content: content["state_dict"].update(
            {"method.backbone.conv1.weight": content["state_dict"]["method.backbone.conv1.weight"].to_sparse()}
        ),
        "does not fit this run (state_dict.method.backbone.conv1.weight is tensor",
    ),
    "moments that are missing": (
        lambda content: moments(content)[0].pop("exp_avg"),
        "does not fit this run (the optimiser's state.0 has other entries, such as 'exp_avg')",
    ),
    "moments that are all missing": (
        lambda content: moments(content).clear(),
        "does not fit this run (the state of the optimiser has other entries)",
    ),
    "moments that are not finite": (
        lambda content: moments(content)[0]["exp_avg"].fill_(math.inf),
        "does not fit this run (the optimiser's state.0.exp_avg is not finite)",
    ),
    "weights that are not finite": (
        lambda content: content["state_dict"]["method.backbone.conv1.weight"].fill_(math.nan),
        "does not fit this run (state_dict.method.backbone.conv1.weight is not finite)",
    ),
    "a schedule of another kind": (
        lambda content: content.update(lr_schedulers=[3]),
        "does not fit this run (lr_schedulers.0 is of type int)",
    ),
    "no progress": (
        lambda content: content.update(loops=None),
        "does not fit this run (loops has other entries, such as 'fit_loop')",
    ),
    "a time that ends nowhere": (
        lambda content: evaluation(content).update(seconds=math.inf),
        "does not fit this run (callbacks.Evaluation.seconds is inf)",
    ),
    "a length that is no number": (
        lambda content: content.update(idaa_lightly_epochs="x"),
        "is damaged: idaa_lightly_epochs: Input should be a valid integer",
    ),
    "figures that are none": (
        lambda content: evaluation(content)["history"][0].update(knn=7.0),
        "is damaged: callbacks.Evaluation.history.0.knn: Input should be less than or equal to 1",
    ),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_checkpoint_of_another_form_is_refused(folder: Path, stopped: Path, kind: str) -> None:
    change, text = DAMAGES[kind]
    rewritten(stopped / "checkpoints/last.ckpt", change)
    before = files()
    refused(run(folder, "--out", stopped, "--resume"), 1, f"stopped/checkpoints/last.ckpt {text}")
    assert files() == before


def trained_by(optimizer: str, folder: Path) -> list[str]:
    """Train a run with an optimiser of its own, take its record away, and return its options."""
    Path("own.py").write_text(
        "from torch.optim import SGD, Adafactor\n"
        "from torch.optim.lr_scheduler import ConstantLR\n"
        "from idaa_lightly_plugins.methods.simclr import SimCLR\n"
        f"class By{optimizer}(SimCLR):\n"
        "    def optimizer(self, parameters, epochs, steps_per_epoch):\n"
        f"        optimizer = {optimizer}(parameters, lr=0.01)\n"
        "        return optimizer, ConstantLR(optimizer, factor=1.0)\n"
    )
    options = ["--plugin", "own.py", "--method", f"by-{optimizer.lower()}", "--out", "still"]
    done(run(folder, *options))
    Path("still/record.json").unlink()
    return options


def test_a_run_whose_optimiser_keeps_other_states_for_vectors_is_resumed(folder: Path) -> None:
    """Adafactor keeps rows and columns of a matrix, but the whole of a vector."""
    options = trained_by("Adafactor", folder)
    kept = moments(torch.load("still/checkpoints/last.ckpt", weights_only=True))
    assert len({frozenset(state) for state in kept.values()}) == 2
    done(run(folder, *options, "--resume"))
    assert Path("still/record.json").exists()


def test_a_run_whose_optimiser_keeps_no_state_is_resumed(folder: Path) -> None:
    still = trained_by("SGD", folder)
    assert moments(torch.load("still/checkpoints/last.ckpt", weights_only=True)) == {}
    done(run(folder, *still, "--resume"))
    assert Path("still/record.json").exists()
    rewritten(Path("still/checkpoints/last.ckpt"), lambda content: moments(content).update({0: {"step": 1}}))
    Path("still/record.json").unlink()
    refused(run(folder, *still, "--resume"), 1, "the state of the optimiser has other entries")


@pytest.mark.parametrize("options", [["--weights", "w.pt"], ["--aug", "idaa", "--vae", "w.pt"]])
def test_a_run_is_not_resumed_with_another_file(folder: Path, options: list[str]) -> None:
    def write() -> None:
        if "--vae" in options:
            VAE(16, bottleneck_dim=4, width=4).save("w.pt")
        else:
            torch.save(create_backbone("resnet9-w2", 16)[0].state_dict(), "w.pt")

    write()
    done(run(folder, *options, "--out", "out"))
    Path("out/record.json").unlink()
    kept = Path("w.pt").read_bytes()
    write()
    refused(
        run(folder, *options, "--out", "out", "--resume"),
        1,
        "w.pt changed after this run was begun: restore what was there, or start anew with another --out",
    )
    Path("w.pt").write_bytes(kept)
    done(run(folder, *options, "--out", "out", "--resume"))


def test_a_run_is_not_resumed_with_another_plugin_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = trained_by("SGD", folder)
    Path("own.py").write_text(Path("own.py").read_text() + "\n")
    monkeypatch.setattr("idaa_lightly.registry._files", {})  # As in a new process.
    text = "the plugin file own.py changed after this run was begun"
    refused(run(folder, *options, "--resume"), 1, text)


@pytest.mark.parametrize(
    "command", [["knn", "stopped/checkpoints/last.ckpt"], ["identity", "stopped", "--aug", "clae"]]
)
def test_evaluations_fall_back_to_the_checkpoint_before(stopped: Path, command: list[str]) -> None:
    last, previous = (stopped / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    shutil.copy(last, previous)
    flip(last)
    before = {path: content for path, content in files().items() if path.is_relative_to(stopped)}
    output = done(bench(*command)).stdout
    assert "last.ckpt is not a checkpoint of this run: " in output
    assert ". Falling back to previous.ckpt, from an epoch earlier." in output
    assert before.items() <= files().items()
    previous.unlink()
    refused(bench(*command), 1, "last.ckpt is not a checkpoint of this run: ")


def test_a_refused_fallback_changes_no_file(folder: Path, stopped: Path) -> None:
    last, previous = (stopped / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    shutil.copy(last, previous)
    rewritten(previous, lambda content: content.update(loops=None))
    flip(last)
    before = files()
    refused(run(folder, "--out", stopped, "--resume"), 1, "previous.ckpt does not fit this run (loops has other")
    assert before.items() <= files().items()


@pytest.mark.parametrize("command", [["knn", "finished"], ["export", "finished", "--out", "x.pth"]])
def test_damaged_weights_are_not_evaluated(trained: Path, command: list[str]) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    flip(finished / "backbone.pt")
    refused(bench(*command), 1, "finished/backbone.pt is not a backbone written by a run: it is damaged, because")


def test_features_of_broken_weights_are_not_kept(trained: Path) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    (finished / "features.npz").unlink(missing_ok=True)
    rewritten(finished / "backbone.pt", lambda weights: next(iter(weights.values())).fill_(math.nan))
    before = files()
    refused(bench("knn", finished), 1, "hold NaN or infinity")
    assert files() == before


def test_an_option_that_the_method_does_not_have(trained: Path) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    config = finished / "config.toml"
    config.write_text(config.read_text().replace("temperature =", "lperature ="))
    refused(bench("knn", finished), 2, "'simclr' has no option 'lperature'; it has: temperature, lr, ")


def test_kept_features_of_another_type_are_computed_again(trained: Path) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    done(bench("knn", finished))
    with np.load(finished / "features.npz") as kept:
        arrays = dict(kept)
    wrong = arrays | {"train_features": arrays["train_features"].astype(str)}
    np.savez(finished / "features.npz", **wrong)
    output = done(bench("linear", finished)).stdout
    assert "features.npz cannot be read, so the features are computed again" in output
    with np.load(finished / "features.npz") as kept:
        assert np.array_equal(kept["train_features"], arrays["train_features"])


def test_results_that_lack_accuracies(trained: Path) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    command = ("knn", finished, "--k", "1,5,90", "--temperature", "0.1,0.5")
    done(bench(*command))
    path = finished / "knn.json"
    content = json.loads(path.read_text())
    assert len(content["results"]["knn"]["accuracies"]) == 6
    done(bench(*command))
    content["results"]["knn"]["accuracies"].pop()
    path.write_text(json.dumps(content))
    refused(
        bench(*command), 1, "knn.json is damaged: results.knn: ", "those of the 6 pairs of k and temperature", "move it"
    )


def test_the_help_of_a_run_lists_its_files(folder: Path) -> None:
    done(run(folder, "--epochs", 2, "--out", "out"))
    text = done(bench("run", "--help")).stdout
    for path in files():
        assert str(path.relative_to("out")) in text


def test_a_study_is_written_to_this_directory(trained: Path) -> None:
    done(bench("identity", trained / "seed-0", "--aug", "clae", "--samples", 4, "--out", "."))
    assert Path("identity.json").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_features_that_are_a_fifo(trained: Path) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    (finished / "features.npz").unlink(missing_ok=True)
    os.mkfifo(finished / "features.npz")
    refused(bench("knn", finished), 1, "finished/features.npz is a FIFO, but expected the features of a run")
