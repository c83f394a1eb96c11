"""Lightly's training loops with an adversarial loss. Each examples/*.diff is a whole script with its changed lines."""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.data import DataLoader

from idaa_lightly import VAE, AdversarialLoss
from idaa_lightly.batchnorm import DualBatchNorm

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.diff"))
DOCS = Path(__file__).parents[1] / "docs" / "loops.md"
LOOPS = ("ddp", "lightning", "pytorch")
SIDES = ("before", "after")
BATCH, STEPS, WORLD = 8, 2, 2
"""Images per batch, batches per rank and example, and ranks."""
VIEWS = {"dino": 8, "swav": 8}  # Other methods have two views.
# Replacements that make an example small enough to run here.
SMALLER = {
    'torchvision.datasets.CIFAR10("datasets/cifar10", download=True, transform=transform)': "images",
    "batch_size=256": f"batch_size={BATCH}",
    "num_workers=8": "num_workers=0",
    "in range(epochs)": "in range(1)",
    "max_epochs=10": "max_epochs=1",
    'devices="auto", accelerator="gpu"': f'devices={WORLD}, accelerator="cpu"',
    "sync_batchnorm=True": "sync_batchnorm=False",  # SyncBatchNorm needs a GPU.
}


def sides(example: Path) -> tuple[str, str]:
    """Return the script before and after the change."""
    lines = example.read_text().splitlines()
    assert {line[:1] for line in lines} == {"", " ", "-", "+"}
    before, after = ("\n".join(line[1:] for line in lines if line[:1] in ("", " ", sign)) for sign in "-+")
    return before, after


def smaller(code: str, ddp: bool, lightning: bool) -> str:
    expected = {
        "in range(epochs)": not lightning,
        "max_epochs=10": lightning,
        'devices="auto", accelerator="gpu"': ddp,
        "sync_batchnorm=True": ddp,
    }
    for old, new in SMALLER.items():
        assert code.count(old) == expected.get(old, True), old
        code = code.replace(old, new)
    count = STEPS * BATCH * (WORLD if ddp else 1)
    images = f'torchvision.datasets.ImageFolder("images", transform=transform), range({count})'
    return code.replace("dataset = images", f"dataset = torch.utils.data.Subset({images})")


def test_the_methods_and_loops() -> None:
    everywhere = {f"{loop}_{method}" for loop in LOOPS for method in ("byol", "moco", "simclr")}
    others = {f"lightning_{method}" for method in ("barlowtwins", "dino", "nnclr", "simsiam", "swav", "vicreg")}
    assert {example.stem for example in EXAMPLES} == everywhere | others


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_the_change_is_at_most_six_lines(example: Path) -> None:
    lines = example.read_text().splitlines()
    assert 0 < sum(line.startswith("+") for line in lines) <= 6
    assert 0 < sum(line.startswith("-") for line in lines) <= 6
    assert max(map(len, lines)) <= 121
    for code in sides(example):
        compile(code, example.stem, "exec")


def test_the_docs_show_parts_of_the_examples() -> None:
    shown = re.findall(r"```diff\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(shown) == 5
    examples = [example.read_text() for example in EXAMPLES]
    for part in shown:
        hunks = [hunk for hunk in re.split(r"^@@.*\n", part, flags=re.MULTILINE) if hunk]
        assert any(all(hunk in example for hunk in hunks) for example in examples), part


def ranks_of(example: str) -> int:
    return WORLD if example.startswith("ddp_") else 1


@pytest.fixture(scope="module")
def trained_examples(folder: Path, made_once: Callable[..., Path]) -> Path:
    """Directory with one folder per example, which holds what both scripts did. One process runs all scripts."""

    def train(root: Path) -> None:
        for example in EXAMPLES:
            place = root / example.stem
            place.mkdir(parents=True)
            torch.manual_seed(0)
            VAE(32, bottleneck_dim=8, width=4).save(place / "vae.pt")
            (place / "images").symlink_to(folder / "train")
            loop = example.stem.partition("_")[0]
            for side, code in zip(SIDES, sides(example), strict=True):
                (place / f"{side}.py").write_text(smaller(code, loop == "ddp", loop != "pytorch"))
        done = subprocess.run(
            [sys.executable, __file__, *(str(root / example.stem) for example in EXAMPLES)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout

    return made_once("examples", train)


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_trains_before_and_after(loop: str, trained_examples: Path) -> None:
    for example in (example.stem for example in EXAMPLES if example.stem.startswith(f"{loop}_")):
        place, ranks = trained_examples / example, range(ranks_of(example))
        check(example, *([torch.load(place / f"{side}.{rank}.pt") for rank in ranks] for side in SIDES))


def check(example: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    loop, method = example.split("_")
    ranks, steps = len(after), STEPS
    for records in (before, after):
        for record in records:
            assert len(record["losses"]) == steps
            assert all(map(math.isfinite, record["losses"]))
            torch.testing.assert_close(record["parameters"], records[0]["parameters"], rtol=0, atol=0)
            if loop == "pytorch":
                (printed,) = re.findall(r"loss: (\S+)", record["printed"])
                assert float(printed) == pytest.approx(sum(record["losses"]) / steps, abs=1e-4)
        if ranks > 1:
            assert records[0]["losses"] != records[1]["losses"]  # Each rank has its own samples.

    for old, new in zip(before, after, strict=True):
        assert not old["views"]
        assert not old["branches"]
        assert len(new["views"]) == steps
        assert new["clean"][0] == pytest.approx(old["losses"][0], rel=1e-4)  # The clean term is Lightly's loss.
        assert all(clean != total for clean, total in zip(new["clean"], new["losses"], strict=True))
        assert all(1e-5 < change < 1 for change in new["views"])  # Rounding alone would be below 1e-7.
        assert len(new["branches"]) >= 20
        for name, (clean_passes, moved, apart) in new["branches"].items():
            assert clean_passes == VIEWS.get(method, 2) * steps, name  # Only the clean views are counted.
            assert moved, name
            assert apart, name
        assert list(old["banks"]) == list(new["banks"]) == (["memory_bank"] if method in ("moco", "nnclr") else [])
        for name, (size, bank) in new["banks"].items():
            assert size == old["banks"][name][0] == steps * BATCH
            torch.testing.assert_close(bank[:BATCH], old["banks"][name][1][:BATCH])  # Keys of clean views only.


def run(*places: str) -> None:
    """Run both scripts of each folder, with one process per rank. Forks share the imports, which take longest."""
    for name in ("lightly.loss", "lightly.models.modules", "lightly.transforms", "torchvision"):
        importlib.import_module(name)
    for place, side in product(places, SIDES):
        os.chdir(place)
        port, ranks = find_free_network_port(), ranks_of(Path(place).name)
        processes = [get_context("fork").Process(target=watch, args=(side, rank, port)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * ranks, (place, side)


def watch(side: str, rank: int, port: int) -> None:
    """Run the script `side` from fixed seeds and save what it did to `{side}.{rank}.pt`."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    losses: list[float] = []
    clean: list[float] = []
    views: list[float] = []
    backward, batches = Tensor.backward, DataLoader.__iter__

    def watched(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        losses.append(loss.item())
        backward(loss, *args, **kwargs)

    def seeded(loader: DataLoader[Any]) -> Any:
        pl.seed_everything(0, verbose=False)
        return batches(loader)

    def seen(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, AdversarialLoss):
            clean.append(output.clean.item())
            views.append((output.views - args[1]).abs().mean().item())

    Tensor.backward, DataLoader.__iter__ = watched, seeded  # type: ignore[method-assign]
    register_module_forward_hook(seen)
    pl.seed_everything(0, verbose=False)
    scope: dict[str, Any] = {"__name__": "__main__"}
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(Path(f"{side}.py").read_text(), side, "exec"), scope)

    model = scope["model"]
    duals = {name: part for name, part in model.named_modules() if isinstance(part, DualBatchNorm)}
    criterion = scope.get("criterion") or model.criterion
    bank = getattr(model, "memory_bank", None) or getattr(criterion, "memory_bank", None)
    state = {
        "printed": printed.getvalue(),
        "losses": losses,
        "clean": clean,
        "views": views,
        "parameters": [parameter.detach() for parameter in model.parameters()],
        "branches": {
            name: (
                dual.clean.num_batches_tracked.item(),
                bool((dual.adversarial.weight != 1).any()),
                bool((dual.adversarial.weight != dual.clean.weight).any()),
            )
            for name, dual in duals.items()
            if dual.clean.affine
        },
        "banks": {"memory_bank": (bank.bank_ptr.item(), bank.bank)} if bank is not None and bank.size[0] else {},
    }
    torch.save(state, f"{side}.{rank}.pt")


if __name__ == "__main__":
    run(*sys.argv[1:])
