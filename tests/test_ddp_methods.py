"""Two ranks with 8 samples each train as one process with 16: every method, and every augmentation."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from idaa_lightly.training import SelfSupervised

WORLD, STEPS = 2, 3
DIFFERENT = {name: "every rank draws its own noise" for name in ("pgd", "random", "viewmaker")}


class Objective(nn.Module):
    """The objective of a module as its forward pass, as Lightning gives it to DDP."""

    def __init__(self, module: SelfSupervised) -> None:
        super().__init__()
        self.module = module

    def forward(self, *views: Tensor) -> Tensor:
        total: Tensor = self.module.objective(self.module.method, *views).total
        return total


def make(method: str, aug: str) -> SelfSupervised:
    """Build the method in float64 with GroupNorms, because torch's SyncBatchNorm does not run on the CPU."""
    module = SelfSupervised(make_method(method), make_augmentation(aug), epochs=2, steps_per_epoch=2, seed=0)
    for part in list(module.modules()):
        for name, norm in part._modules.items():
            if isinstance(norm, _BatchNorm):
                learns = any(parameter.requires_grad for parameter in norm.parameters())
                part._modules[name] = nn.GroupNorm(1, norm.num_features, affine=norm.affine).requires_grad_(learns)
    if aug == "idaa":
        module.objective.generator.space.vae.double()  # type: ignore[union-attr]  # no part of the module
    return module.double().train()


def train(module: SelfSupervised, forward: Callable[..., Tensor], ranks: range) -> tuple[Tensor, Tensor]:
    """Takes a few steps on the samples of `ranks`. Returns their losses, and the gradient of the first."""
    module.method.lr /= 10  # keys of earlier steps stay near, so that nearest neighbours are among them
    configured = module.configure_optimizers()
    losses, gradients = [], []
    for step in range(STEPS):
        module.method.before_step(step, *module.schedule)
        shares = [views(WORLD * step + rank, torch.float64, 2 * module.method.multi_crop) for rank in ranks]
        loss = forward(*(torch.cat(parts) for parts in zip(*shares, strict=True)))
        configured["optimizer"].zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
        losses.append(loss.detach())
    return torch.stack(losses), gradients[0]


def work(rank: int, store: str, references: dict[str, tuple[SelfSupervised, Tensor, Tensor]]) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    differ = []
    for pair, (module, losses, gradient) in references.items():
        found, slope = train(module, DistributedDataParallel(Objective(module)), range(rank, rank + 1))
        distributed.all_reduce(found)
        apart = [(found / WORLD - losses).abs().max(), (slope - gradient).norm() / gradient.norm()]
        line = f"{pair:20} loss {apart[0]:.1e}, gradient {apart[1]:.1e}"
        if rank == 0:
            print(line)
        differ += [line] * any(value > 1e-9 for value in apart)
    distributed.destroy_process_group()
    assert not differ, "\n".join(["differ:", *differ])


@pytest.mark.slow
def test_two_ranks_train_as_one_process(tmp_path: Path) -> None:
    """The losses of three steps, and the gradient of the first one."""
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    from forks import failed
    from test_matrix import AUGMENTATIONS, METHODS, make_augmentation, make_method, views

    pairs = {(method, aug) for method in METHODS for aug in ("none", "idaa")}
    pairs |= {("simclr", aug) for aug in AUGMENTATIONS if aug not in DIFFERENT}
    modules = {f"{method} x {aug}": make(method, aug) for method, aug in sorted(pairs)}
    references = {
        pair: (copy.deepcopy(module), *train(module, Objective(module), range(WORLD)))
        for pair, module in modules.items()
    }
    sys.exit(failed(lambda rank: work(rank, str(Path("store").resolve()), references), WORLD))
