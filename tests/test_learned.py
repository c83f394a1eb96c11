"""Learned generators: their views obey their bounds, and they learn to raise the loss that the model lowers, or not."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from test_bad_input import bench, done
from torch import Tensor, nn

from idaa_lightly import (
    VAE,
    AdversarialLoss,
    LatentSpace,
    LearnedColor,
    LearnedNoise,
    ReusedGraphLoss,
    Viewmaker,
    dual_batchnorm,
)
from idaa_lightly.ascent import Noise
from idaa_lightly.errors import UsageError
from idaa_lightly.learned import Direction, LatentNetwork, reverse_gradient
from idaa_lightly.spaces import Pixels

NORMALIZE = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
PIXELS = Pixels(NORMALIZE)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


X = PIXELS.normalized(draw(4, 3, 16, 16))
MEANS = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def unasked(images: Tensor) -> Tensor:
    raise AssertionError("a learned generator does not ask the objective")


def color(
    eps: float = 1.0, represent: Callable[[Tensor], Tensor] = MEANS, direction: Direction = "ascend"
) -> LearnedColor:
    torch.manual_seed(1)
    return LearnedColor(represent, 3, NORMALIZE, eps=eps, direction=direction)


def viewmaker(budget: float = 0.05, seed: int = 0, direction: Direction = "ascend") -> Viewmaker:
    torch.manual_seed(1)
    return Viewmaker(NORMALIZE, budget=budget, width=4, seed=seed, direction=direction)


def noise(eps: float = 0.5, seed: int = 0, direction: Direction = "ascend") -> LearnedNoise:
    torch.manual_seed(1)
    return LearnedNoise(eps=eps, width=4, seed=seed, direction=direction)


def latent(eps: float = 0.3) -> tuple[LatentNetwork, VAE]:
    torch.manual_seed(1)
    vae = VAE(16, bottleneck_dim=6, width=4).eval()
    return LatentNetwork(LatentSpace(vae), 6, eps=eps, hidden_dim=8), vae


def test_the_network_of_the_bottleneck_by_hand() -> None:
    """x' = x − D(z) + D(z + ε tanh(MLP(z, noise))), with the noise of its own stream."""
    made, vae = latent()
    delta, views = made.search(X, unasked)
    with torch.no_grad():
        z, _ = vae.encode(X)
        noise = Noise(0).like(z)
        expected = 0.3 * made.layers(torch.cat([z, noise], 1)).tanh()
        torch.testing.assert_close(delta, expected)
        torch.testing.assert_close(views, X - vae.decode(z) + vae.decode(z + expected))
    assert delta.abs().max() < 0.3
    torch.testing.assert_close(made.spread, (expected / 0.3).std(0).mean())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_network_of_the_bottleneck_takes_other_types(dtype: torch.dtype) -> None:
    made, _ = latent()
    delta, views = made.search(X.to(dtype), unasked)
    assert views.dtype == dtype
    assert delta.abs().amax() > 0
    assert made.to(dtype).search(X.to(dtype), unasked)[1].dtype == dtype


def test_the_spread_is_kept_if_the_network_is_a_part_of_the_module_that_calls_the_loss() -> None:
    """As in a LightningModule that calls `self.criterion(self, x0, x1)`."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = AdversarialLoss(NTXentLoss(), latent()[0])

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    module = Module()
    module.criterion(module, X, X.flip(0))
    assert module.criterion.generator.spread > 0  # type: ignore[operator, union-attr]


def test_colour_mixing_of_feature_maps_leaves_no_trace_in_statistics() -> None:
    """Lightly's backbones end in maps of one pixel, which its examples flatten."""
    backbone = dual_batchnorm(nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1)))
    generator = color(represent=backbone)
    torch.testing.assert_close(generator(X, unasked), color(represent=lambda x: backbone(x).flatten(1))(X, unasked))
    assert not backbone.state_dict()["0.running_mean"].any()
    model = nn.Sequential(backbone, nn.Flatten())
    plain = copy.deepcopy(model)
    ReusedGraphLoss(NTXentLoss(), generator)(model, X, X.flip(0))
    plain(X), plain(X.flip(0))
    assert all(torch.equal(part, plain.state_dict()[name]) for name, part in model.state_dict().items())


def test_a_collapsed_network_of_the_bottleneck() -> None:
    made, _ = latent()
    nn.init.zeros_(made.layers[-1].weight)
    made(X, unasked)
    assert made.spread == 0
    nn.init.zeros_(made.layers[-1].bias)
    torch.testing.assert_close(made(X, unasked), X)


def test_the_network_of_the_bottleneck_learns_to_raise_the_loss() -> None:
    """Only the network is trained, by the gradient that the model follows downwards, with its sign reversed."""
    made, vae = latent()
    frozen = copy.deepcopy(vae.state_dict())
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = -(made(X, unasked) - X).square().mean()  # is lowered by larger changes
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] > losses[0] / 2
    assert all(torch.equal(value, frozen[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert {name for name, _ in made.named_parameters()} == {
        f"layers.{number}.{part}" for number in (0, 2, 4) for part in ("weight", "bias")
    }


def test_the_network_in_a_run_and_in_its_study() -> None:
    options = ["--limit-train", "64", "--backbone", "resnet9-w4", "--batch-size", "32", "--epochs", "1"]
    settings = [part for option in ("search=network", "vae_epochs=1") for part in ("--set", f"aug.{option}")]
    done(bench("run", "--aug", "idaa", *settings, *options, "--out", "r"))
    with Path("r/metrics.csv").open() as file:
        (spread,) = filter(None, (row["attack/spread"] for row in csv.DictReader(file)))
    assert 0.01 < float(spread) < 1
    done(bench("identity", "r", "--aug", "idaa", "--samples", 40))
    figures = json.loads(Path("r/identity/identity.json").read_text())["augmentations"]["idaa"]
    assert 0 < figures["own_linf"] < 0.15


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1), seed=st.integers(0, 9))
def test_a_reversed_gradient(values: list[float], seed: int) -> None:
    x, weights = torch.tensor(values, requires_grad=True), draw(len(values), seed=seed)
    same = reverse_gradient(x)
    (gradient,) = torch.autograd.grad((same * weights).sum(), x)
    assert torch.equal(same, x)
    assert torch.equal(gradient, -weights)


PRIMARIES = PIXELS.normalized(torch.eye(3).view(1, 3, 1, 3))  # Red, green and blue pixels show α.


@given(eps=st.floats(0, 1), size=st.floats(0, 100), seed=st.integers(0, 99))
def test_rows_of_a_learned_mixing_sum_to_one(eps: float, size: float, seed: int) -> None:
    generator = color(eps)
    nn.init.normal_(generator.layer.weight, std=size, generator=torch.Generator().manual_seed(seed))
    alpha = PIXELS.from_normalized(generator(PRIMARIES, unasked).detach())[0, :, 0]
    assert (alpha >= -1e-6).all()
    torch.testing.assert_close(alpha.sum(1), torch.ones(3))
    assert (1 - alpha.diagonal() <= eps + 1e-6).all()


def test_a_learned_mixing_by_hand() -> None:
    generator = color(eps=0.5)
    shares = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]])
    generator.load_state_dict({"layer.weight": torch.zeros(9, 3), "layer.bias": shares.log().flatten()})
    alpha = PIXELS.from_normalized(generator(PRIMARIES, unasked).detach())[0, :, 0]
    torch.testing.assert_close(alpha, torch.eye(3) / 2 + shares / 2)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("make", [color, viewmaker, noise])
def test_without_strength_the_view_is_the_input(make: Callable[[float], nn.Module], autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(make(0.0)(X, unasked), X, rtol=0, atol=1e-5)


def test_the_representation_learns_nothing_and_is_no_part() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    generator = color(represent=backbone)
    generator(X, unasked).square().sum().backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in generator.parameters())
    assert dict(generator.named_parameters()).keys() == generator.state_dict().keys() == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize("size", [32, 30, 28, 16])
def test_the_budget_is_spent_where_nothing_is_clamped(size: int) -> None:
    grey = torch.full((3, 3, size, size), 0.5)
    views = PIXELS.from_normalized(viewmaker(0.01)(PIXELS.normalized(grey), unasked).detach())
    assert 0.1 < views.min() < views.max() < 0.9
    torch.testing.assert_close((views - grey).abs().mean((1, 2, 3)), torch.full((3,), 0.01), rtol=1e-4, atol=0)


@given(budget=st.floats(0, 1), seed=st.integers(0, 99))
def test_views_stay_within_budget_and_range(budget: float, seed: int) -> None:
    pixels = draw(2, 3, 16, 16, seed=seed).round(decimals=1)  # Includes black and white.
    with torch.no_grad():
        views = PIXELS.from_normalized(viewmaker(budget)(PIXELS.normalized(pixels), unasked))
    assert ((views - pixels).abs().mean((1, 2, 3)) <= budget + 1e-6).all()
    assert -1e-6 <= views.min() <= views.max() <= 1 + 1e-6


@pytest.mark.parametrize("size", [16, 15])
def test_learned_noise_by_hand(size: int) -> None:
    """An untrained network gives noise of mean 0 and deviation eps / 2. A trained one gives any within the bounds."""
    images, generator = torch.full((64, 3, size, size), 7.0), noise(0.4)
    added = (generator(images, unasked) - images).detach()
    assert added.mean().abs() < 0.01
    assert added.std().item() == pytest.approx(0.2, abs=0.003)
    with torch.no_grad():
        generator.layers[-1].bias.copy_(torch.tensor([0.0, 0.5, -50.0, -50.0, -50.0, 50.0]))
    added = (generator(images, unasked) - images).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(added[:2], torch.tensor([[0.0], [0.4 * math.tanh(0.5)]]).expand_as(added[:2]))
    assert (added[2].mean().item(), added[2].std().item()) == pytest.approx((-0.4, 0.4), abs=0.01)


@pytest.mark.parametrize("make", [viewmaker, noise])
def test_the_noise_is_ones_own_and_checkpointed(make: Callable[..., nn.Module]) -> None:
    generator, resumed, before = make(), make(), torch.get_rng_state()
    first, state, second = generator(X, unasked), copy.deepcopy(generator.state_dict()), generator(X, unasked)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, second)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(X, unasked), second)
    assert not torch.equal(make(seed=1)(X, unasked), first)


class Shifted(nn.Module):
    """Model that returns the mean brightness of each image, plus a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return PIXELS.from_normalized(x).mean((1, 2, 3)) + self.shift


def train(generator: nn.Module, x: Tensor, steps: int, lr: float) -> list[float]:
    """Train model and generator with one optimiser on the total loss; return the change of brightness at each step."""
    model, loss, changes = Shifted(), AdversarialLoss(lambda first, second: second.mean(), generator), []
    optimizer = torch.optim.Adam([{"params": generator.parameters()}, {"params": model.parameters(), "lr": 0.01}], lr)
    for _ in range(steps):
        out = loss(model, x, x)
        changes.append((out.adversarial - out.clean).item())
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
    assert model.shift.item() == pytest.approx(-0.01 * steps, rel=1e-3)  # Adam descends by its rate.
    return changes


def test_the_layer_learns_which_colour_is_brightest_in_each_image() -> None:
    dim, bright = 0.5 * draw(8, 3, 8, 8), 0.5 + 0.5 * draw(8, 8, 8)
    dim[:4, 2], dim[4:, 0] = bright[:4], bright[4:]  # four blue images, four red ones
    changes = train(generator := color(), x := PIXELS.normalized(dim), steps=100, lr=0.1)
    assert abs(changes[0]) < 0.1
    assert changes[-1] > 0.3  # At most (0.75 - 0.25) · 2 / 3 are possible.
    alpha = generator.layer(MEANS(x)).view(8, 3, 3).softmax(2)
    assert torch.cat([alpha[:4, :, 2], alpha[4:, :, 0]]).min() > 0.8


def test_the_viewmaker_learns_to_brighten() -> None:
    changes = train(viewmaker(), PIXELS.normalized(0.2 + 0.6 * draw(4, 3, 16, 16)), steps=60, lr=0.02)
    assert abs(changes[0]) < 0.025
    assert 0.04 < changes[-1] < 0.05 + 1e-6  # The budget allows 0.05.


@pytest.mark.parametrize("direction", ["ascend", "descend"])
@pytest.mark.parametrize("make", [color, viewmaker, noise])
def test_the_gradient_is_plus_or_minus_the_weighted_gradient_of_the_loss(
    make: Callable[..., nn.Module], direction: Direction
) -> None:
    """The reference takes the views as they are, without a reversal, and differentiates the loss itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()).double()
    criterion = lambda first, second: (first - second).square().sum()  # noqa: E731
    generator, twin = make(direction=direction).double(), make(direction="descend").double()
    x, y = (PIXELS.normalized(draw(4, 3, 16, 16, seed=seed)).double() for seed in (0, 1))
    AdversarialLoss(criterion, generator, weight=0.25)(model, x, y).total.backward()
    expected = torch.autograd.grad(criterion(model(x), model(twin(x, unasked))), list(twin.parameters()))
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    factor = {"ascend": -0.25, "descend": 0.25}[direction]
    for (name, parameter), gradient in zip(generator.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, factor * gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("direction", ["ascend", "descend"])
def test_learned_noise_brightens_or_darkens(direction: Direction) -> None:
    """The loss is the brightness, which the mean of the noise can move by at most eps = 0.5, times the deviation."""
    generator = noise(direction=direction)
    changes = train(generator, PIXELS.normalized(0.2 + 0.6 * draw(4, 3, 16, 16)), steps=60, lr=0.02)
    reached = changes[-1] / (0.5 * sum(NORMALIZE["std"]) / 3)
    assert abs(changes[0]) < 0.02
    assert reached > 0.8 if direction == "ascend" else reached < -0.8


@pytest.mark.parametrize(("name", "make"), [("eps", color), ("budget", viewmaker)])
def test_a_bad_strength(name: str, make: Callable[[float], nn.Module]) -> None:
    for value in (-0.1, 1.5, math.nan):
        with pytest.raises(UsageError, match=f"^{re.escape(f'{name} is {value}, but expected float, 0 to 1')}$"):
            make(value)
