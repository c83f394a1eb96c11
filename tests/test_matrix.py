"""Every method × {none, idaa} and every augmentation × {simclr}: a few steps of the real thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idaa_lightly import IDAA, VAE, AdversarialLoss, dual_batchnorm
from idaa_lightly.backbones import create_backbone
from idaa_lightly.plugin import Augmentation, Method, options_of
from idaa_lightly.registry import entries, load
from idaa_lightly.training import SelfSupervised

NORMALIZE = {"mean": [0.5] * 3, "std": [0.25] * 3}
OURS = "idaa-lightly"
METHODS = [entry.name for entry in entries("method") if entry.distribution == OURS]
AUGMENTATIONS = [entry.name for entry in entries("augmentation") if entry.distribution == OURS]
PAIRS = {(method, aug) for method in METHODS for aug in ("none", "idaa")} | {("simclr", aug) for aug in AUGMENTATIONS}


def make_method(name: str, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    backbone, num_features = create_backbone("resnet9-w4", 16)
    plugin = load("method", name)
    small = {key: 16 for key in ("projection_dim", "prediction_dim") if key in options_of(plugin)}
    method: Method = plugin(backbone, num_features, **small)
    return method


def make_augmentation(name: str) -> Augmentation:
    plugin = load("augmentation", name)
    if "vae" not in options_of(plugin):
        return plugin()  # type: ignore[no-any-return]
    torch.manual_seed(1)
    VAE(16, bottleneck_dim=6, width=4).save("vae.pt")
    augmentation: Augmentation = plugin(vae="vae.pt")
    augmentation.fit(
        type("Context", (), {"image_size": 16, "channels": 3, "seed": 0})()
    )  # all that loading a file asks for
    return augmentation


def views(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(2, 8, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype))


def steps(module: SelfSupervised, optimizer: Any, scheduler: Any, start: int, count: int) -> list[float]:
    losses = []
    for step in range(start, start + count):
        loss = module.objective(module.method, *views(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("method", "aug"), sorted(PAIRS))
def test_trains_and_resumes_to_the_bit(method: str, aug: str) -> None:
    def fresh(seed: int) -> tuple[SelfSupervised, Any, Any]:
        module = SelfSupervised(
            make_method(method, seed), make_augmentation(aug), epochs=2, steps_per_epoch=2, seed=0
        ).train()
        return module, *module.method.optimizer(module.parameters(), 2, 2)

    whole = fresh(0)
    before = [parameter.detach().clone() for parameter in whole[0].parameters()]
    losses = steps(*whole, 0, 2)
    torch.save([part.state_dict() for part in whole], "half.pt")
    losses += steps(*whole, 2, 2)
    assert torch.tensor(losses).isfinite().all()
    moved = [not torch.equal(a, b) for a, b in zip(before, whole[0].parameters(), strict=True)]
    assert all(moved)
    resumed = fresh(1)
    for part, state in zip(resumed, torch.load("half.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert steps(*resumed, 2, 2) == losses[2:]
    for name, value in whole[0].state_dict().items():
        other = resumed[0].state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name


@pytest.mark.parametrize("name", METHODS)
def test_the_attacks_start_gradient_is_not_zero(name: str) -> None:
    """Invariant 2, in float64, through the whole method, between an image and itself."""
    method = dual_batchnorm(make_method(name).double())
    x = views(0, torch.float64)[0].requires_grad_()
    output = method(x)
    anchor = tuple(part.detach() for part in output) if isinstance(output, tuple) else output.detach()
    (gradient,) = torch.autograd.grad(method.loss(anchor, output), x)  # type: ignore[operator]
    assert gradient.flatten(1).norm(dim=1).min() > 1e-8


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_leaves_no_trace_in_the_method(name: str) -> None:
    method = dual_batchnorm(make_method(name)).train()
    state = {key: value.clone() for key, value in method.state_dict().items()}
    criterion = AdversarialLoss(method.loss, IDAA(VAE(16, bottleneck_dim=6, width=4)))  # type: ignore[arg-type]
    criterion._attack(method, views(0)[0], [])
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())


def test_simclr_overfits_a_batch() -> None:
    module = SelfSupervised(make_method("simclr"), make_augmentation("none"), epochs=1, steps_per_epoch=1, seed=0)
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    first = last = 0.0
    for step in range(60):
        loss = module.objective(module.method, *views(0)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    floor = nn.functional.cross_entropy(torch.tensor([[2.0, *[-2.0 / 7] * 14]]), torch.tensor([0])).item()
    assert last < first - 0.5
    assert last < floor + 0.6


@pytest.mark.parametrize("name", ["random", "pgd"])
def test_noise_is_of_the_runs_seed(name: str) -> None:
    """Or several seeds of the control would share their directions."""
    drawn = []
    for seed in (0, 1, 0):
        augmentation: Any = load("augmentation", name)(**({"space": "pixels"} if name == "random" else {}))
        augmentation.fit(type("Context", (), {"seed": seed})())
        drawn.append(augmentation.generator()(views(0)[0], lambda images: 0 * images.sum()))  # flat: the noise stays
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
