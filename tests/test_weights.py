"""Weights to continue from: files of several origins, matched by name and shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from idaa_lightly.backbones import create_backbone
from idaa_lightly.cli import main
from idaa_lightly.errors import FileFormatError, UsageError
from idaa_lightly.weights import load_pretrained, matched

State = dict[str, Tensor]


def bench(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


HEAD = {"fc.weight": torch.ones(10, 16), "fc.bias": torch.ones(10)}
FORMS: dict[str, tuple[Callable[[nn.Module], Any], list[str]]] = {
    "plain": (lambda network: network.state_dict(), []),
    "with a classifier": (lambda network: network.state_dict() | HEAD, ["fc.weight", "fc.bias"]),
    "of torchvision's scripts": (lambda network: {"model": network.state_dict() | HEAD, "epoch": 3}, [*HEAD]),
    "of Lightly": (lambda network: {"state_dict": prefixed("backbone.", network.state_dict()) | HEAD}, []),
    "of Lightly's examples": (
        lambda network: {"state_dict": prefixed("backbone.", nn.Sequential(*network.children()).state_dict())}, []
    ),
    "with a momentum network": (
        lambda network: prefixed("module.encoder_q.", network.state_dict())
        | {key: value + 1 for key, value in prefixed("module.encoder_k.", network.state_dict()).items()},
        [],
    ),
    "of a teacher": (lambda network: {"student": {}, "teacher": prefixed("backbone.", network.state_dict())}, []),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_files_of_several_origins(form: str) -> None:
    (there, _), (here, _) = (create_backbone("resnet9-w2", 16) for _ in range(2))
    content, unexpected = FORMS[form]
    torch.save(content(there), "x.pth")
    match, digest = load_pretrained(here, "x.pth")
    assert (match.missing, match.unexpected, len(digest)) == ([], unexpected, 64)
    torch.testing.assert_close(here.state_dict(), there.state_dict(), rtol=0, atol=0)


def test_other_shapes_and_a_file_of_another_network() -> None:
    torch.save(create_backbone("timm/resnet10t", 224)[0].state_dict(), "x.pth")
    network, _ = create_backbone("timm/resnet10t", 32)
    text = load_pretrained(network, "x.pth")[0].in_words()
    assert "; missing, so left at their initial values: conv1.weight; unexpected, so left out: conv1.0.weight" in text
    assert text.endswith(" and 7 more")
    with pytest.raises(FileFormatError, match=r"x\.pth does not fit the backbone: it has 9 of 72 tensors"):
        load_pretrained(create_backbone("resnet9-w2", 16)[0], "x.pth")
    Path("y.pth").write_text("nothing")
    with pytest.raises(FileFormatError, match=r"y\.pth is not a state dict, or a checkpoint of tensors"):
        load_pretrained(network, "y.pth")
    with pytest.raises(UsageError, match="--weights timm needs a network of timm: choose one with --backbone"):
        load_pretrained(network, "timm")


def test_safetensors() -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    (there, _), (here, _) = (create_backbone("resnet9-w2", 16) for _ in range(2))
    save_file(there.state_dict(), "x.safetensors")
    assert load_pretrained(here, "x.safetensors")[0].missing == []
    torch.testing.assert_close(here.state_dict(), there.state_dict(), rtol=0, atol=0)
    Path("y.safetensors").write_text("nothing")
    with pytest.raises(FileFormatError, match=r"y\.safetensors is not a state dict"):
        load_pretrained(here, "y.safetensors")


@pytest.mark.parametrize("source", ["seed-0", "seed-0/backbone.pt", "seed-0/checkpoints/last.ckpt"])
def test_a_run_continues_from_a_run(folder: Path, trained: Path, source: str) -> None:
    options = ["--data", f"folder:{folder}", "--epochs", 1, "--batch-size", 12, "--accelerator", "cpu", "--aug", "none"]
    options += ["--backbone", "resnet9-w2", "--weights", trained / source, "--out", "run"]
    output = bench("run", *options).output
    assert f"Weights from {trained / source}: 72 of 72 tensors of the backbone." in output
    first, then = (json.loads((run / "record.json").read_text()) for run in (trained / "seed-0", Path("run")))
    assert then["initial"]["knn"] == first["last"]["knn"]
    assert then["fitted"]["weights"]["missing"] == []
    bench("knn", "run", "--k", 5)


CACHED = """
import sys
from pathlib import Path
import timm, torch
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import save_file

torch.manual_seed(1)
model = timm.create_model(sys.argv[1])
where = Path(HF_HUB_CACHE, "models--" + model.pretrained_cfg["hf_hub_id"].replace("/", "--"))
(where / "refs").mkdir(parents=True)
(where / "refs" / "main").write_text("0" * 40)
(where / "snapshots" / ("0" * 40)).mkdir(parents=True)
save_file(model.state_dict(), where / "snapshots" / ("0" * 40) / "model.safetensors")
torch.save(model.state_dict(), "theirs.pth")

from idaa_lightly.backbones import build_backbone
from idaa_lightly.weights import load_pretrained

built = build_backbone(sys.argv[1], 32)
print(load_pretrained(built.network, "timm", built.plan)[0].in_words())
torch.save(built.network.state_dict(), "ours.pth")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "resampled"),
    [
        ("test_vit", "78 of 78 tensors of the backbone", ["patch_embed.proj.weight", "pos_embed"]),
        ("test_convnext", "missing, so left at their initial values: stem.0.weight; unexpected", ["stem.0.weight"]),
    ],
)
def test_pretrained_weights_of_timm(name: str, text: str, resampled: list[str]) -> None:
    """The weights lie in a cache of the Hugging Face hub, since tests use no network."""
    env = {**os.environ, "HF_HOME": str(Path("hub").resolve()), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CACHED, name], env=env, capture_output=True, text=True, check=False)
    assert text in done.stdout, done.stdout + done.stderr
    theirs, ours = (torch.load(file, weights_only=True) for file in ("theirs.pth", "ours.pth"))
    differ = [key for key, value in ours.items() if not torch.equal(value, theirs[key])]
    assert differ == resampled or sorted(differ) == sorted(resampled)


@pytest.mark.slow
def test_timm_without_a_network() -> None:
    env = {**os.environ, "HF_HOME": str(Path("hub").resolve()), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "idaa_lightly.cli",
        "run",
        "--aug",
        "none",
        "--backbone",
        "test_vit",
        "--weights",
        "timm",
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "timm's weights of test_vit cannot be loaded (" in done.stderr
    assert "pass it to --weights" in done.stderr


def test_unrelated_tensors_match_nothing() -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    assert matched(network, {"a": torch.ones(1), "b": 3}).found == {}
