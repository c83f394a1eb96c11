"""Two ranks with 8 samples each train as one process with 16: every method, and every augmentation.

`python tests/test_ddp_methods.py docs/ddp.md` writes the differences as a page.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from idaa_lightly.training import SelfSupervised

References = dict[tuple[str, str], tuple[SelfSupervised, Tensor, Tensor]]
WORLD, STEPS = 2, 3
DIFFERENT = {name: "every rank draws its own noise" for name in ("pgd", "pinda", "random", "viewmaker")}

PAGE = """# Several devices against one

Greatest relative differences between 2 processes with 8 samples each and 1 process with all 16, in float64 on the CPU:
of the loss in three training steps, and of the gradient of all parameters in the first one.
`python tests/test_ddp_methods.py docs/ddp.md` writes this page, and the test refuses differences above 1e-9.

BatchNorm is replaced by GroupNorm, because it normalises by the statistics of each device's share. These also differ
from one process by definition, and are therefore not in the table: `random`, `viewmaker`, `pinda` and the random
start of `pgd`, for which every device draws its own noise; `--set aug.mode=half`, which attacks the first half of
each device's share; and `--views device`, whose random numbers depend on the device. See [Several
devices](runner.md#several-devices).

| method | loss | gradient | loss with `idaa` | gradient with `idaa` |
| --- | --- | --- | --- | --- |
{methods}

| `simclr` with | loss | gradient |
| --- | --- | --- |
{augmentations}
"""


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
        shares = [batch(WORLD * step + rank, module) for rank in ranks]
        loss = forward(*(torch.cat(parts).double() for parts in zip(*shares, strict=True)))
        configured["optimizer"].zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
        losses.append(loss.detach())
    return torch.stack(losses), gradients[0]


def work(rank: int, store: str, page: Path | None, references: References) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    apart = {}
    for pair, (module, losses, gradient) in references.items():
        found, slope = train(module, DistributedDataParallel(Objective(module)), range(rank, rank + 1))
        distributed.all_reduce(found)
        loss = ((found / WORLD - losses) / losses).abs().max().item()
        apart[pair] = loss, ((slope - gradient).norm() / gradient.norm()).item()
    distributed.destroy_process_group()
    if page and rank == 0:
        page.write_text(described(apart))
    differ = {pair: values for pair, values in apart.items() if not max(values) <= 1e-9}  # NaN, too
    assert not differ, differ


def described(apart: dict[tuple[str, str], tuple[float, float]]) -> str:
    cells = {pair: " | ".join(f"{value:.0e}" if value else "0" for value in values) for pair, values in apart.items()}
    methods = [
        f"| `{name}` | {cells[name, 'none']} | {cells.get((name, 'idaa'), 'refused | refused')} |"
        for name, aug in sorted(cells)
        if aug == "none"
    ]
    others = [f"| `{aug}` | {cells[name, aug]} |" for name, aug in sorted(cells) if aug not in ("none", "idaa")]
    return PAGE.format(methods="\n".join(methods), augmentations="\n".join(others))


def test_the_committed_page_has_all_pairs() -> None:
    from test_matrix import AUGMENTATIONS, METHODS

    text = (Path(__file__).parents[1] / "docs" / "ddp.md").read_text()
    named = [*METHODS, *(aug for aug in AUGMENTATIONS if aug not in (*DIFFERENT, "none", "idaa"))]
    assert [
        line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and "with |" not in line
    ] == named


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
    from test_matrix import ALLOWED, AUGMENTATIONS, batch, make_augmentation, make_method

    page = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    pairs = {(method, aug) for method, aug in ALLOWED if aug in ("none", "idaa")}
    pairs |= {("simclr", aug) for aug in AUGMENTATIONS if aug not in DIFFERENT}
    os.chdir(tempfile.mkdtemp())
    modules = {pair: make(*pair) for pair in sorted(pairs)}
    references = {
        pair: (copy.deepcopy(module), *train(module, Objective(module), range(WORLD)))
        for pair, module in modules.items()
    }
    sys.exit(failed(lambda rank: work(rank, str(Path("store").resolve()), page, references), WORLD))
