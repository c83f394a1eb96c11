"""Runs through the command line, end to end, on small inputs."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks.arena import Command
from click.testing import CliRunner, Result
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly import knn_classify
from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.cost import flops_per_image
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import Parts, make_parts, read_data, resolve
from idaa_lightly.cli import main
from idaa_lightly.training import SelfSupervised

TINY = [
    "--limit-train", "96", "--backbone", "resnet9-w4", "--batch-size", "32", "--accelerator", "cpu",
]  # fmt: skip
SMALL_VAE = ["--set", "aug.width=8", "--set", "aug.bottleneck_dim=16"]
NARROW = [*TINY, "--backbone", "resnet9-w2"]  # The last --backbone takes effect.
FILES = {
    "config.toml", "record.json", "metrics.csv", "checkpoints", "backbone.pt", "curves.png", "views.png",
}  # fmt: skip


def bench(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result


def tiny(aug: str, out: str, *more: str) -> dict[str, Any]:
    options = SMALL_VAE if aug in ("idaa", "random") else []
    bench("run", "--aug", aug, *TINY, "--epochs", "2", *options, "--out", out, *more)
    record: dict[str, Any] = json.loads(Path(out, "record.json").read_text())
    return record


def same(first: Path, second: Path) -> bool:
    a, b = (torch.load(path / "backbone.pt", weights_only=True) for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("aug", ["none", "random", "clae", "idaa"])
def test_the_run_folder(aug: str) -> None:
    record = tiny(aug, "run")
    assert {path.name for path in Path("run").iterdir()} == FILES
    assert record["schema"] == 3
    assert [entry["epoch"] for entry in record["history"]] == [0, 1, 2]
    assert record["initial"]["epoch"] == 0
    assert 0 < record["initial"]["knn_pixels"] < 1
    assert record["last"]["epoch"] == 2
    assert ["knn" in entry for entry in record["history"]] == [True, False, True]  # test images at both ends only
    assert record["best"]["knn"] == max(entry["knn_validation"] for entry in record["history"][1:])
    assert 0 <= record["last"]["linear"] <= 1
    assert record["evaluation"]["knn_k"] == 96  # k is clamped to the size of the bank.
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    network, _ = create_backbone("resnet9-w4", 32)
    network.load_state_dict(torch.load("run/backbone.pt", weights_only=True), strict=True)
    with open("run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = {"loss/total", "loss/total_epoch"} | ({"loss/clean", "loss/adversarial"} if aug != "none" else set())
    assert losses <= set(rows[0])
    views = ("second",) if aug == "none" else ("second", "adversarial")
    for row in (row for row in rows if row["loss/total"]):
        assert all(0 <= float(row[f"identity/{view}_lost"]) <= 1 for view in views)
        assert all(float(row[f"identity/{view}_information"]) <= math.log(32) for view in views)
    assert record["fitted"].keys() == ({"vae"} if aug in ("idaa", "random") else set())
    curve = [float(row["knn_validation"]) for row in rows if row["knn_validation"]]
    assert curve == [entry["knn_validation"] for entry in record["history"]]


def test_settings_can_be_chosen_without_the_test_images() -> None:
    record = tiny("none", "tuning", "--evaluate-on", "validation")
    assert (record["data"]["train"], record["data"]["test"]) == (86, 10)  # of 96 training images
    assert [entry["knn_validation"] for entry in record["history"] if "knn" in entry] == [
        record["initial"]["knn"], record["last"]["knn"]
    ]  # fmt: skip


def test_the_flops_of_a_step() -> None:
    """A plain step costs 6 forward passes. CLAE adds 2 for the attack and 3 for its view, so (6 + 2 + 3) / 6."""
    plain, clae = (tiny(aug, aug)["time"]["flops_per_image"] for aug in ("none", "clae"))
    network, _ = create_backbone("resnet9-w4", 32)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    # The tolerance covers the head (more) and the input gradient that the first layer does not need (less).
    assert plain == pytest.approx(2 * 3 * counter.get_total_flops(), rel=0.1)
    assert clae / plain == pytest.approx(11 / 6, rel=0.05)


def parts_of(config: RunConfig) -> Parts:
    config = resolve(config)
    return make_parts(config, make_augmentation(config), read_data(config))


@pytest.mark.parametrize("aug", ["none", "clae", "color", "viewmaker", "metaug"])
def test_counting_operations_leaves_no_trace(aug: str) -> None:
    parts = parts_of(RunConfig(aug=aug, limit_train=64, backbone="resnet9-w4", batch_size=32, accelerator="cpu"))
    fit(parts.augmentation, fit_context(parts, torch.device("cpu")), parts.config.precision)
    module = SelfSupervised(parts.method, parts.augmentation, epochs=1, steps_per_epoch=2, seed=0)
    before = copy.deepcopy(module.state_dict())
    assert flops_per_image(parts, module, torch.device("cpu")) > 0
    after = module.state_dict()
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.slow
def test_a_vae_that_is_fitted_in_half_precision_is_as_good() -> None:
    errors = []
    for precision in ("32-true", "bf16-mixed"):
        options = {"aug": {"width": 16, "bottleneck_dim": 32, "vae_epochs": 12}}
        parts = parts_of(RunConfig(limit_train=256, backbone="resnet9-w4", precision=precision, set=options))
        fit(parts.augmentation, fit_context(parts, torch.device("cpu")), parts.config.precision)
        errors.append(parts.augmentation.fitted()["vae"]["mse"])
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_the_same_seed_gives_the_same_result_and_its_config_repeats_it() -> None:
    first = tiny("random", "first", "--set", "method.temperature=0.2")
    bench("run", "--config", "first/config.toml", "--out", "second")
    second = json.loads(Path("second/record.json").read_text())
    assert same(Path("first"), Path("second"))
    assert second["history"] == first["history"]
    assert second["config"] == first["config"]
    assert second["config"]["set"]["method"]["temperature"] == 0.2
    bench("run", "--config", "first/config.toml", "--out", "third", "--seed", "5")
    assert not same(Path("first"), Path("third"))


def test_several_seeds() -> None:
    output = bench("run", "--aug", "none", *TINY, "--epochs", "1", "--seed", "1", "--seed", "2", "--out", "both").output
    records = [json.loads(Path(f"both/seed-{seed}/record.json").read_text()) for seed in (1, 2)]
    accuracies = [100 * record["last"]["knn"] for record in records]
    assert f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}" in " ".join(output.split())


def test_processes_that_make_views_change_nothing() -> None:
    tiny("none", "alone")
    tiny("none", "workers", "--workers", "2")
    assert same(Path("alone"), Path("workers"))


def test_knn_of_a_run_a_checkpoint_and_features() -> None:
    record = tiny("clae", "run")
    expected = f"{100 * record['last']['knn']:.2f} %"
    for target in ("run", "run/checkpoints/last.ckpt"):
        output = bench("knn", target, "--k", "96").output
        assert expected in output, target
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(count, 8, generator=generator) for count in (60, 20))
    labels = torch.arange(60) % 3, torch.arange(20) % 3
    np.savez("features.npz", train_features=bank, train_labels=labels[0], test_features=queries, test_labels=labels[1])
    ranked = knn_classify(bank, labels[0], queries, k=5)
    accuracy = (ranked[:, 0] == labels[1]).double().mean()
    assert f"{100 * accuracy:.2f} %" in bench("knn", "features.npz", "--k", "5").output


def test_a_vae_alone_then_in_a_run(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    lightning = logging.getLogger("pytorch_lightning")
    monkeypatch.setattr(lightning, "level", logging.INFO)
    monkeypatch.setattr(lightning, "handlers", [caplog.handler])
    made = bench("vae", "--data", "digits", "--limit-train", "64", "--epochs", "1", *SMALL_VAE, "--out", "vae.pt")
    assert not [record for record in caplog.records if record.name.startswith("pytorch_lightning")]
    first, warning, last = made.output.splitlines()
    assert first == "VAE on 64 images of 32 px, 1 epoch"
    assert "fit it for more epochs" in warning
    assert last.startswith("Mean squared error of the reconstruction: ")
    record = tiny("idaa", "run", "--vae", "vae.pt")
    assert record["config"]["set"]["aug"]["vae"] == "vae.pt"
    assert record["fitted"]["vae"]["sha256"] == hashlib.sha256(Path("vae.pt").read_bytes()).hexdigest()
    again = CliRunner().invoke(main, ["vae", "--out", "vae.pt"])
    assert again.exit_code == 2
    assert "vae.pt exists: choose another --out, or add --force" in again.output


def test_the_best_epoch_is_never_the_untrained_one(trained: Path) -> None:
    record = json.loads((trained / "seed-0/record.json").read_text())
    assert [entry["epoch"] for entry in record["history"]] == [0, 1]
    assert record["initial"]["knn_validation"] >= record["last"]["knn_validation"]
    assert record["best"]["epoch"] == 1


def test_dry_run_prints_the_configuration_and_stops() -> None:
    output = bench("run", "--dry-run", "--lr", "0.1", "--seed", "3", "--seed", "4").output
    for line in ("lr = 0.1", "eps = 0.15", 'backbone = "resnet9-w16"', "# seeds: 3, 4"):
        assert line in output
    assert not list(Path().iterdir())


def test_resume_of_a_finished_run_leaves_it() -> None:
    tiny("none", "run")
    before = Path("run/record.json").read_text()
    output = bench("run", "--aug", "none", *TINY, "--epochs", "2", "--out", "run", "--resume").output
    assert "is finished already" in output
    assert Path("run/record.json").read_text() == before


def interrupted(sent: signal.Signals, *arguments: str) -> str:
    """Run a command up to its next checkpoint, send it a signal, and return its output."""
    checkpoint = Path("parts/checkpoints/last.ckpt")

    def written() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    before, log = written(), Path(sent.name)
    process = Command([*arguments], log).process
    while written() == before and process.is_alive():
        time.sleep(0.02)
    os.kill(process.pid or 0, sent)
    process.join()
    assert process.exitcode == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[sent], log.read_text()
    return log.read_text()


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_bit() -> None:
    """The run is interrupted, resumed, killed and resumed. Random directions have a noise state to restore."""
    options = ["run", "--aug", "random", *NARROW, *SMALL_VAE, "--set", "aug.vae_epochs=1", "--epochs", "20"]
    bench(*options, "--out", "whole")
    outputs = [interrupted(sent, *options, "--out", "parts", "--resume") for sent in (signal.SIGINT, signal.SIGKILL)]
    assert "--resume to continue after the last finished epoch" in outputs[0]
    assert "Resuming after epoch" in outputs[1]
    assert not Path("parts/record.json").exists()
    assert "Resuming after epoch" in bench(*options, "--out", "parts", "--resume").output
    assert same(Path("whole"), Path("parts"))
    histories = [json.loads(Path(run, "record.json").read_text())["history"] for run in ("whole", "parts")]
    assert histories[0] == histories[1]
    assert Path("whole/metrics.csv").read_text() == Path("parts/metrics.csv").read_text()


@pytest.mark.slow
def test_the_default_run_learns() -> None:
    """The run is that of `make demo` with fewer epochs: SimCLR with IDAA on digits, VAE included.

    Even with `--lr 0`, batch norm statistics alone raise kNN accuracy by 22 points within three epochs.
    They do not raise kNN accuracy on projections, which therefore shows whether the network learns.
    """
    bench("run", "--epochs", "3", "--set", "aug.vae_epochs=2", "--out", "demo")
    record = json.loads(Path("demo/record.json").read_text())
    assert record["last"]["knn"] > record["initial"]["knn"] + 0.05
    assert record["last"]["knn_projection"] > record["initial"]["knn_projection"] + 0.1


COMMANDS = """
import json, sys
from idaa_lightly.cli import main
for arguments in json.loads(sys.argv[1]):
    print("Command:", *arguments, flush=True)
    if code := main(arguments, standalone_mode=False):
        sys.exit(code)
"""


def test_a_precision_that_lightning_would_replace_is_refused() -> None:
    refused = CliRunner().invoke(main, ["run", *TINY, "--aug", "none", "--precision", "16-mixed", "--out", "half"])
    assert (refused.exit_code, refused.stderr) == (
        2,
        "Error: precision is 16-mixed, but this device trains in bf16-mixed instead: use --precision bf16-mixed\n",
    )
    assert not Path("half").exists()


@pytest.mark.slow
def test_two_devices() -> None:
    """Several runs share one pair of processes. The first run fits the VAE before Lightning starts rank 1."""
    runs = {
        "idaa": ["--aug", "idaa", *SMALL_VAE],
        "viewmaker": ["--method", "moco", "--aug", "viewmaker"],
        "metaug": ["--aug", "metaug"],
        "device-views": ["--aug", "none", "--views", "device"],
    }
    common = [*NARROW, "--epochs", "1", "--devices", "2", "--strategy", "ddp"]
    Path("commands.py").write_text(COMMANDS)
    arguments = json.dumps([["run", *options, *common, "--out", name] for name, options in runs.items()])
    done = subprocess.run([sys.executable, "commands.py", arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in runs:
        assert {path.name for path in Path(name).iterdir()} == FILES, name
        record = json.loads(Path(name, "record.json").read_text())
        assert record["device"]["count"] == 2
    assert record["data"]["views"]["by"] == "device"


def test_the_command_line_names_another_plugin_than_the_file() -> None:
    bench("run", "--aug", "clae", "--set", "aug.eps=0.1", *TINY, "--epochs", "1", "--out", "clae")
    output = bench("run", "--config", "clae/config.toml", "--aug", "none", "--dry-run").output
    assert 'aug = "none"' in output
    assert "eps" not in output
    assert "eps = 0.1" in bench("run", "--config", "clae/config.toml", "--dry-run").output
    assert "compile = false" in bench("run", "--config", "clae/config.toml", "--no-compile", "--dry-run").output


@pytest.mark.parametrize(
    ("content", "options", "kept", "dropped"),
    [
        ('backbone = "whitened"\nset.backbone.width = 4', ["--backbone", "resnet9-w4"], "resnet9-w4", "width = 4"),
        ('backbone = "whitened"\nset.backbone.width = 4', ["--backbone", "whitened"], "width = 4", "resnet9"),
        ('aug = "idaa"\nvae = "x.pt"', ["--aug", "none"], 'aug = "none"', "x.pt"),
        ('method = "simclr"\nlr = 7.0', ["--method", "byol"], 'method = "byol"', "7.0"),
        ('method = "simclr"\nlr = 7.0', ["--lr", "0.5", "--method", "byol"], "lr = 0.5", "7.0"),
    ],
)
def test_options_of_a_plugin_of_the_file_that_is_not_taken(
    content: str, options: list[str], kept: str, dropped: str
) -> None:
    Path("x.toml").write_text(f"{content}\n")
    output = bench("run", "--config", "x.toml", *options, "--dry-run").output
    assert kept in output
    assert dropped not in output


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("byol", {}, 0.24),
        ("byol", {"batch_size": 128}, 0.06),
        ("byol", {"batch_size": 128, "accumulate": 2}, 0.12),
        ("byol", {"batch_size": 128, "lr": 0.24}, 0.24),
        ("byol", {"batch_size": 128, "set": {"method": {"lr": 0.1}}}, 0.1),
        ("byol", {"data": "digits"}, 0.06),
        ("smog", {"batch_size": 512}, 0.01),
    ],
)
def test_the_learning_rate_is_scaled_with_the_batch_if_the_recipe_does(
    method: str, given: dict[str, Any], expected: float
) -> None:
    config = resolve(RunConfig(**{"method": method, "data": "cifar10", **given}))
    assert config.set["method"]["lr"] == expected
    assert resolve(config).set == config.set


def test_a_file_of_options_alone_is_for_whatever_plugin_the_command_line_names() -> None:
    Path("options.toml").write_text("[set.aug]\neps = 0.07\n")
    assert "eps = 0.07" in bench("run", "--config", "options.toml", "--aug", "clae", "--dry-run").output
