from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from idaa_lightly import (
    CLAE,
    AdversarialLoss,
    FeatureGenerator,
    LearnedColor,
    MetAugLoss,
    OUCLLoss,
    dual_batchnorm,
)
from idaa_lightly.batchnorm import DualBatchNorm
from idaa_lightly.training import SelfSupervised

WORLD = 2


def gradients(model: nn.Module, network: nn.Module, rank: int) -> list[Tensor]:
    """Run a backward pass through `model` on this rank's samples, and return the gradients of `network`."""
    x0, x1 = torch.randn(2, 4, 3, 6, 6, generator=torch.Generator().manual_seed(rank))
    AdversarialLoss(NTXentLoss(), CLAE())(model, x0, x1).total.backward()
    found = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def work(rank: int, store: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    for broadcast in (False, True):
        averaged(rank, broadcast)
    objectives(rank)
    branches(rank)
    distributed.destroy_process_group()


def averaged(rank: int, broadcast: bool) -> None:
    torch.manual_seed(0)
    network = dual_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)))
    alone = [copy.deepcopy(network) for _ in range(WORLD)]
    expected = [sum(parts) / WORLD for parts in zip(*(gradients(m, m, r) for r, m in enumerate(alone)), strict=True)]
    found = gradients(DistributedDataParallel(network, broadcast_buffers=broadcast), network, rank)
    torch.testing.assert_close(found, expected)
    for gradient in found:
        assert torch.equal(*everyones(gradient))
    torch.testing.assert_close(network[1].clean.num_batches_tracked, torch.tensor(2))
    if not broadcast:
        torch.testing.assert_close(network.state_dict(), alone[rank].state_dict())


class Step(nn.Module):
    """Network together with a loss that has parameters, as Lightning wraps them."""

    def __init__(self, objective: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.ReLU(), nn.Linear(16, 5))
        self.objective = objective(self.network)

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        total: Tensor = self.objective(self.network, x0, x1).total
        return total


def objectives(rank: int) -> None:
    """Check that DDP averages reversed gradients (learned generator) and second-order gradients (MetAug)."""
    normalize = {"mean": [0.0] * 3, "std": [1.0] * 3}
    for objective in (
        lambda network: AdversarialLoss(NTXentLoss(), LearnedColor(network, 5, normalize)),
        lambda network: MetAugLoss(
            OUCLLoss(), [FeatureGenerator(5, 8) for _ in range(2)], feature_weight=1.0, margin_weight=1.0
        ),
    ):
        torch.manual_seed(0)
        step = Step(objective)
        samples = [torch.rand(2, 4, 3, 6, 6, generator=torch.Generator().manual_seed(r)) for r in range(WORLD)]
        expected = {name: torch.zeros_like(part) for name, part in step.named_parameters()}
        for views in samples:
            alone = copy.deepcopy(step)
            alone(*views).backward()
            for name, part in alone.named_parameters():
                assert part.grad is not None
                expected[name] += part.grad / WORLD
        wrapped = DistributedDataParallel(step)  # DDP averages only while this reference lives.
        wrapped(*samples[rank]).backward()
        torch.testing.assert_close({name: part.grad for name, part in step.named_parameters()}, expected)


def branches(rank: int) -> None:
    """Check that both branches of real BatchNorms stay in step in training, as the runner trains them.

    Parameters are equal on all ranks, to the bit. Running statistics are those of each rank's share after a step. DDP
    replaces them by those of rank 0 before the next one, and rank 0 also writes the checkpoint.
    """
    module = SelfSupervised(make_method("simclr"), make_augmentation("clae"), epochs=1, steps_per_epoch=3, seed=0)
    wrapped = DistributedDataParallel(Objective(module.train()))
    optimizer = module.configure_optimizers()["optimizer"]
    entered = []
    norms = [part for part in module.modules() if isinstance(part, DualBatchNorm)]
    norms[0].register_forward_pre_hook(lambda norm, _: entered.append(norm.clean.running_mean.clone()))
    for step in range(3):
        entered.clear()
        loss = wrapped(*views(WORLD * step + rank))
        assert torch.equal(*everyones(entered[0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert not torch.equal(*everyones(norms[0].clean.running_mean))
    for name, parameter in module.named_parameters():
        assert torch.equal(*everyones(parameter.detach())), name
    for norm in norms:
        assert not torch.equal(norm.clean.weight, norm.adversarial.weight)
        assert list(norm.adversarial.buffers()) == []


def everyones(tensor: Tensor) -> list[Tensor]:
    found = [torch.empty_like(tensor) for _ in range(WORLD)]
    distributed.all_gather(found, tensor)
    return found


@pytest.mark.slow
def test_gradients_are_averaged_over_the_ranks(tmp_path: Path) -> None:
    """Both settings of `broadcast_buffers` are tested. The ranks are forks of one process, which imports torch once."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "store")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    from forks import failed
    from test_ddp_methods import Objective
    from test_matrix import make_augmentation, make_method, views

    sys.exit(failed(lambda rank: work(rank, sys.argv[1]), WORLD))
