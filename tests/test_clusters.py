"""Several nodes, accumulated and clipped gradients, and jobs that Slurm requeues."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from attacks.arena import Command
from click.testing import CliRunner, Result
from test_matrix import make_augmentation, make_method, views
from torch.utils.data import DataLoader

from idaa_lightly.bench.ranks import NUMBERS, is_first_process
from idaa_lightly.cli import main
from idaa_lightly.training import SelfSupervised

TINY = ["--backbone", "resnet9-w2", "--accelerator", "cpu", "--aug", "none"]


def bench(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_accumulated_steps_are_counted_everywhere(folder: Path) -> None:
    options = ["--data", f"folder:{folder}", *TINY, "--batch-size", 8, "--accumulate", 2, "--epochs", 3]
    options += ["--method", "dcl", "--out", "run"]
    assert "3 epochs of 2 steps, 16 images each" in bench("run", *options).output
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert (checkpoint["global_step"], checkpoint["lr_schedulers"][0]["last_epoch"]) == (6, 6)
    assert checkpoint["lr_schedulers"][0]["_last_lr"] == pytest.approx([0.0], abs=1e-12)
    record = json.loads(Path("run/record.json").read_text())
    assert record["time"]["images_per_s"] * record["time"]["train_s"] == pytest.approx(3 * 2 * 16, rel=0.1)
    refused = bench("run", *options, "--accumulate", 5, "--out", "other", code=1).stderr
    assert "fewer than a batch of 40" in refused


def trained(batch_size: int, accumulate: int, clip: float | None = None) -> tuple[SelfSupervised, list[int]]:
    """Train SimSiam, whose loss compares no samples, for two steps of 8 samples. BatchNorms use running statistics."""
    module = SelfSupervised(
        make_method("simsiam"), make_augmentation("none"), epochs=1, steps_per_epoch=2, accumulate=accumulate, seed=0
    )
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            part.momentum = 0.0
            part.train = lambda mode=True, part=part: part  # type: ignore[method-assign]
            part.training = False
    calls: list[int] = []
    module.method.before_step = lambda step, *schedule: calls.append(step)  # type: ignore[method-assign]
    samples = [list(zip(*views(seed), strict=True)) for seed in (0, 1)]
    rows = [([first, second], 0) for pair in samples for first, second in pair]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=accumulate, gradient_clip_val=clip,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size))  # type: ignore[arg-type]
    return module, calls


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    whole, parts = trained(8, 1), trained(4, 2)
    assert whole[1] == parts[1] == [0, 1], "a momentum network is updated once per optimiser step"
    torch.testing.assert_close(whole[0].state_dict(), parts[0].state_dict())
    clipped, _ = trained(8, 1, clip=1e-6)
    start = make_method("simsiam").state_dict()
    moves = [
        torch.cat([(module.method.state_dict()[key] - value).flatten().float() for key, value in start.items()]).norm()
        for module in (whole[0], clipped)
    ]
    assert moves[1] < moves[0] / 20


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@pytest.mark.slow
def test_two_nodes(folder: Path) -> None:
    """Each node is a torchrun of its own on the loopback device. They share the run directory."""
    port, env = free_port(), {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--data", f"folder:{folder}", *TINY, "--batch-size", "8", "--epochs", "2", "--out", "run"]
    options += ["--num-nodes", "2", "--devices", "1", "--strategy", "ddp"]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    torchrun += ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    nodes = [
        subprocess.Popen(
            [*torchrun, "--node-rank", str(rank), "-m", "idaa_lightly.cli", "run", *options],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert "Trains on 2 × cpu on 2 nodes, in precision 32-true" in outputs[0]
    assert "epoch 2/2" in outputs[0]
    assert "epoch 2/2" not in outputs[1], "the second node is silent"
    record = json.loads(Path("run/record.json").read_text())
    assert record["device"]["count"] == 2
    assert record["config"]["num_nodes"] == 2


SCONTROL = """#!/bin/sh
echo "$@" >> requeued.txt
exit $SCONTROL_FAILS
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails", [0, 1])
def test_slurm_requeues_a_run(fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script stands in for Slurm's scontrol. The signal and the variables are those that Slurm sends and sets."""
    Path("bin").mkdir()
    Path("bin/scontrol").write_text(SCONTROL)
    Path("bin/scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    path = f"{Path('bin').resolve()}{os.pathsep}{os.environ['PATH']}"
    for name, value in {**job, "SLURM_JOB_NAME": "x", "PATH": path, "SCONTROL_FAILS": str(fails)}.items():
        monkeypatch.setenv(name, value)
    options = ["run", "--limit-train", "96", *TINY, "--batch-size", "32", "--epochs", "300", "--out", "run", "--resume"]
    process = Command(options, Path("log")).process
    while not Path("run/checkpoints/last.ckpt").exists() and process.is_alive():
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGUSR1)
    process.join(120)
    error = Path("log").read_text()
    assert process.exitcode == 128 + signal.SIGUSR1, error
    assert Path("requeued.txt").read_text() == "requeue 42\n"
    expected = "Slurm could not requeue job 42 (" if fails else "Slurm has requeued job 42."
    assert f"Interrupted by SIGUSR1. {expected}" in error
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["epoch"] >= 0


def test_the_second_process_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NUMBERS:
        monkeypatch.delenv(name, raising=False)
    assert is_first_process()
    for name in NUMBERS:
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            assert not is_first_process()


def test_precision_and_compilation_are_chosen_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    toml = bench("run", "--aug", "none", "--precision", "auto", "--accelerator", "cpu", "--dry-run").output
    assert 'precision = "32-true"' in toml
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    toml = bench("run", "--aug", "none", "--compile", "--dry-run").output
    assert "Note: there is no C++ compiler, so --compile is left out." in toml
    assert "compile = false" in toml
