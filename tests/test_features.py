"""MetAug: the margin by hand, the gradients of both steps by a second implementation, and the margin's effect."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly import FeatureGenerator, MetAugLoss, OUCLLoss
from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import resolve
from idaa_lightly.errors import UsageError
from idaa_lightly.metaug import Bounds, margin
from idaa_lightly.options import options_of
from idaa_lightly.outputs import embedding_of
from idaa_lightly.registry import load

Hold = Callable[[Tensor], Tensor]  # Maps a term that is held constant to its value.
MetAug: Any = load("augmentation", "metaug")
I = torch.eye(2, dtype=torch.float64)  # noqa: E741
TURNED = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)  # with I: d⁺ is 0.8 twice, d⁻ is 0.1 and 0.9


@pytest.mark.parametrize(
    ("bounds", "z1", "made1", "expected"),
    [
        ("batch", I, TURNED, 0.3 + 0.5),  # σ⁺ = max d⁻ = 0.5, σ⁻ = min d⁺ = 1: 0.8 − 0.5, plus the mean of 0.9 and 0.1
        ("batch", TURNED, TURNED, 0 + 0.4),  # σ⁺ = min d⁺ = 0.8, σ⁻ = max d⁻ = 0.9: 0, plus the mean of 0.8 and 0
        ("batch", TURNED, I, 0.2 + 0.4),  # generated: d̂⁺ = 1, d̂⁻ = 0.5
        ("batch", I, I.flip(0), 0.0),  # generated: d̂⁺ = 0.5 = σ⁺, d̂⁻ = 1 = σ⁻
        ("anchor", I, TURNED, 0.3 + 0.5),  # the bounds are those of the batch for every anchor
        ("anchor", TURNED, TURNED, 0.35 + 0.35),  # anchors with d⁻ = 0.1: 0.8 − 0.1 in both terms. With d⁻ = 0.9: 0
        ("anchor", TURNED, I, 0.55 + 0.35),  # 1 − 0.1 and 0.8 − 0.5 with d⁻ = 0.1, 1 − 0.8 and 0.9 − 0.5 with d⁻ = 0.9
        ("anchor", I, I.flip(0), 0.0),
    ],
)
def test_margin_by_hand(bounds: Bounds, z1: Tensor, made1: Tensor, expected: float) -> None:
    """The lengths of the embeddings do not matter."""
    assert margin(2 * I, z1, I, 3 * made1, bounds=bounds).item() == pytest.approx(expected, abs=1e-12)


def test_both_views_are_anchors() -> None:
    """Three samples on a circle, so that rows and columns have different bounds. Each anchor is computed on its own."""
    angles = torch.tensor([[0.0, 1.0, 2.5], [0.4, 1.9, 2.2], [0.1, 1.5, 2.0], [0.6, 1.2, 2.9]], dtype=torch.float64)
    z0, z1, made0, made1 = torch.stack([angles.cos(), angles.sin()], 2)
    far, near = [], []
    for a, b, made_a, made_b in ((z0, z1, made0, made1), (z1, z0, made1, made0)):
        for i, others in enumerate(([1, 2], [0, 2], [0, 1])):
            positive, negatives = float(a[i] @ b[i] + 1) / 2, [float(a[i] @ b[j] + 1) / 2 for j in others]
            low, high = sorted([positive, max(negatives)])
            far.append(max(0.0, float(made_a[i] @ made_b[i] + 1) / 2 - low))
            near += [max(0.0, high - float(made_a[i] @ made_b[j] + 1) / 2) for j in others]
    assert margin(z0, z1, made0, made1).item() == pytest.approx(sum(far) / 6 + sum(near) / 12, abs=1e-12)


def test_margin_holds_its_thresholds_constant() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(4, 3).requires_grad_() for _ in range(4)]
    gradients = torch.autograd.grad(margin(*parts), parts, allow_unused=True)
    assert gradients[:2] == (None, None)
    assert all(gradient.abs().max() > 0.01 for gradient in gradients[2:])


def test_generated_embeddings_are_directions_of_directions() -> None:
    torch.manual_seed(0)
    generator, z = FeatureGenerator(3, 5).double().eval(), torch.randn(4, 3).double()
    torch.testing.assert_close(generator(z).norm(dim=1), torch.ones(4).double())
    torch.testing.assert_close(generator(7 * z), generator(z))
    assert [layer.weight.shape[0] for layer in FeatureGenerator(3).layers[::3]] == [12, 12, 3]


class Queued(nn.Sequential):
    """Model that returns a tuple and keeps state: it replaces the buffer `queue` and updates `seen` in place."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = super().forward(x)
        self.queue = torch.cat([z.detach(), self.queue])[:20]
        self.seen += len(x)
        return z, self.queue


def problem(kind: str, weighted: bool) -> tuple[Any, MetAugLoss, list[Tensor]]:
    torch.manual_seed(0)
    first, norm = nn.Linear(4, 5), nn.Identity() if kind == "plain" else nn.BatchNorm1d(5)
    model = (Queued if kind == "tuple" else nn.Sequential)(first, norm, nn.Tanh(), nn.Linear(5, 3)).double()
    model.register_buffer("queue", torch.zeros(20, 3).double())
    model.register_buffer("seen", torch.zeros(()))
    first.requires_grad_(kind != "frozen")
    generators = [FeatureGenerator(3, 3).double() for _ in range(2)]
    weights = {"feature_weight": 0.7, "margin_weight": 1.3}
    loss = MetAugLoss(
        OUCLLoss(4.0, weighted=weighted), generators, **weights, inner_lr=0.9, second_order=True, bounds="batch"
    )
    x = torch.randn(6, 4).double()
    return model, loss, [x + 0.5 * torch.randn_like(x) for _ in range(2)]


def contrast(outs: list[Tensor], weighted: bool, held: Hold) -> Tensor:
    """Compute OUCL at γ = 4 and m = 0.25 as written in Li et al., Sec. 3.3."""
    z = torch.cat([out / out.norm(dim=1, keepdim=True) for out in outs])
    d, sample = (z @ z.T + 1) / 2, torch.arange(len(outs[0])).repeat(len(outs))
    same, itself = sample[:, None] == sample, torch.eye(len(z)).bool()
    near = held((d + 0.25).clamp_min(0)) * (d - 0.25) if weighted else d
    far = held((1.25 - d).clamp_min(0)) * (d - 0.75) if weighted else d
    pairs = torch.exp(4 * (near[:, :, None] - far[:, None, :]))
    inside = (pairs * (~same[:, :, None] & (same & ~itself)[:, None, :])).sum((1, 2))
    return (1 if weighted else 16) / 4 * torch.log(1 + inside).mean()


def terms(model: nn.Module, loss: MetAugLoss, views: list[Tensor], held: Hold) -> tuple[Tensor, Tensor]:
    """Return the loss L and the margin."""
    z = [embedding_of(model(x)) for x in views]
    made = [generator(part) for generator, part in zip(loss.generators, z, strict=True)]
    given, new = (F.cosine_similarity(a[:, None], b[None], dim=2) / 2 + 0.5 for a, b in (z, made))
    others, weighted = ~torch.eye(6).bool(), loss.contrast.weighted
    low, high = sorted([given.diagonal().min(), given[others].max()])
    far = (new.diagonal() - held(low)).clamp_min(0).mean()
    near = (held(high) - new[others]).clamp_min(0).mean()
    return contrast(z, weighted, held) + 0.7 * contrast([*z, *made], weighted, held), far + near


def two_steps(model: nn.Module, loss: MetAugLoss, views: list[Tensor], held: Hold) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of the network's step, and the generators' loss after it, with θ̂ outside the graph."""
    ahead = copy.deepcopy(model)
    theta = [part for part in ahead.parameters() if part.requires_grad]
    slopes = torch.autograd.grad(terms(ahead, loss, views, held)[0], theta)
    for part, slope in zip(theta, slopes, strict=True):
        part.data -= 0.9 * slope
    value, far_and_near = terms(ahead, loss, views, held)
    return list(slopes), value + 1.3 * far_and_near


def central_differences(value: Callable[[], float], parameters: list[Tensor], step: float = 1e-6) -> Tensor:
    found = []
    for flat in [part.detach().view(-1) for part in parameters]:
        for index, entry in enumerate(flat.tolist()):
            flat[index] = entry + step
            above = value()
            flat[index] = entry - step
            found.append((above - value()) / (2 * step))
            flat[index] = entry
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "weighted"), [("plain", 0), ("batchnorm", 1), ("tuple", 0), ("frozen", 1)])
def test_both_gradients(kind: str, weighted: int) -> None:
    """θ gets the gradient of its own loss. ω gets the one through the step of θ, as finite differences confirm."""
    model, loss, views = problem(kind, weighted == 1)
    reference, constants = copy.deepcopy((model, loss)), []
    output = loss(model, *views)
    output.total.backward()
    assert output.total.item() == (output.contrast + 0.7 * output.augmented).item()
    slopes, meta = two_steps(*reference, views, lambda new: constants.append(new.detach()) or constants[-1])
    found = [part.grad for part in model.parameters()]  # Frozen parameters come first.
    torch.testing.assert_close(found, [None] * (len(found) - len(slopes)) + slopes, rtol=1e-9, atol=1e-12)
    omega = list(reference[1].generators.parameters())
    direct = torch.cat([slope.flatten() for slope in torch.autograd.grad(meta, omega)])
    held = itertools.cycle(constants)  # Each call uses every constant once.
    differences = central_differences(lambda: two_steps(*reference, views, lambda _: next(held))[1].item(), omega)
    ours = torch.cat([part.grad.flatten() for part in loss.generators.parameters()])
    torch.testing.assert_close(ours, differences, rtol=1e-5, atol=1e-7)
    assert (ours - direct).norm() > 0.1 * ours.norm()


@pytest.mark.parametrize(("kind", "weighted"), [("plain", 0), ("batchnorm", 1), ("tuple", 0), ("frozen", 1)])
def test_gradients_without_look_ahead(kind: str, weighted: int) -> None:
    """θ gets the gradient of its own loss. ω gets that of its loss at the same θ, which includes the margin."""
    model, loss, views = problem(kind, weighted == 1)
    loss.second_order = False
    (twin, own), constant = copy.deepcopy((model, loss)), Tensor.detach
    output = loss(model, *views)
    output.total.backward()
    value, far_and_near = terms(twin, own, views, constant)
    torch.testing.assert_close(output.total, value)
    torch.testing.assert_close(output.margin, far_and_near.detach())
    theta, omega = ([part for part in module.parameters() if part.requires_grad] for module in (twin, own.generators))
    slopes = torch.autograd.grad(value, theta, retain_graph=True)
    meta = torch.autograd.grad(value + 1.3 * far_and_near, omega)
    found = [part.grad for part in model.parameters() if part.requires_grad]
    torch.testing.assert_close(found, list(slopes), rtol=1e-9, atol=1e-12)
    made = [part.grad for part in loss.generators.parameters()]
    torch.testing.assert_close(made, list(meta), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("second_order", [False, True])
def test_gradients_if_the_model_contains_the_loss(second_order: bool) -> None:
    """As in a LightningModule that calls `self.criterion(self, x0, x1)`."""

    class Module(nn.Module):
        def __init__(self, network: nn.Module, criterion: nn.Module) -> None:
            super().__init__()
            self.network, self.criterion = network, criterion

        def forward(self, x: Tensor) -> Any:
            return self.network(x)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    generators = [FeatureGenerator(3, 3) for _ in range(2)]
    weights = {"feature_weight": 0.7, "margin_weight": 1.3}
    loss = MetAugLoss(OUCLLoss(4.0), generators, **weights, inner_lr=0.9, second_order=second_order)
    whole = copy.deepcopy(Module(network, loss))
    views = [torch.randn(6, 4) for _ in range(2)]
    loss(network, *views).total.backward()
    whole.criterion(whole, *views).total.backward()  # type: ignore[operator]
    separate = [*network.parameters(), *loss.parameters()]
    for alone, inside in zip(separate, whole.parameters(), strict=True):
        torch.testing.assert_close(inside.grad, alone.grad)


def test_operations_without_look_ahead() -> None:
    """Generators of the default width cost little, and no further pass of the network is made."""
    counts = []
    for aug, options in (("none", {}), ("metaug", {"second_order": False}), ("metaug", {"second_order": True})):
        method = load("method", "simclr")(*create_backbone("resnet9-w8", 16))
        augmentation: Any = load("augmentation", aug)(**options)
        augmentation.fit(SimpleNamespace(channels=3, image_size=16))
        loss = augmentation.loss(method)
        with FlopCounterMode(display=False) as counter:
            loss(method, *torch.rand(2, 4, 3, 16, 16)).total.backward()
        counts.append(counter.get_total_flops())
    assert 1 < counts[1] / counts[0] < 1.2
    assert counts[2] / counts[0] > 3


def test_the_pass_after_the_step_leaves_no_trace() -> None:
    """Running statistics, queues and counters, including the contrast's, reflect only the two ordinary passes."""

    def count(contrast: nn.Module, _: Any) -> None:
        contrast.calls += 1

    model, loss, views = problem("tuple", weighted=True)
    loss.contrast.register_buffer("calls", torch.zeros(()))
    loss.contrast.register_forward_pre_hook(count)
    plain, random = copy.deepcopy(model), torch.get_rng_state()
    loss(model, *views).total.backward()
    assert torch.equal(torch.get_rng_state(), random)
    for x in views:
        plain(x)
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)
    assert (model.seen, loss.contrast.calls) == (12, 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_margin_prevents_the_collapse_into_copies(seed: int) -> None:
    """Without the margin, the generators learn to copy their input, and what they generate for both views coincides."""
    found = {}
    for weight in (0.0, 10.0):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 8))
        generators = [FeatureGenerator(8, 32) for _ in range(2)]
        loss = MetAugLoss(OUCLLoss(), generators, feature_weight=1.0, margin_weight=weight)
        views = list(torch.randn(16, 10) + 0.3 * torch.randn(2, 16, 10))
        optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=5e-3)
        for _ in range(80):
            optimizer.zero_grad()
            loss(model, *views).total.backward()
            optimizer.step()
        z = [model(x).detach() for x in views]
        made = [generator(part).detach() for generator, part in zip(generators, z, strict=True)]
        d = F.cosine_similarity(z[0][:, None], z[1][None], dim=2) / 2 + 0.5
        limit = torch.minimum(d.diagonal().min(), (d - 2 * torch.eye(16)).max())  # σ⁺
        excess = F.cosine_similarity(*made).mean() / 2 + 0.5 - limit
        found[weight] = [margin(*z, *made), excess, F.cosine_similarity(z[0], made[0]).mean()]
    without, with_margin = found.values()
    assert without[0] > 0.7 > 0.2 > with_margin[0]
    assert without[1] > 0.2 > 0.02 > with_margin[1]
    assert without[2] > 0.95 > 0.3 > with_margin[2]


@pytest.mark.parametrize("name", ["simclr", "byol", "moco", "simsiam"])
def test_under_a_method(name: str) -> None:
    torch.manual_seed(0)
    plugin = load("method", name)
    small = {key: 16 for key in ("projection_dim", "hidden_dim", "queue") if key in options_of(plugin)}
    method = plugin(*create_backbone("resnet9-w4", 16), **small).train()
    augmentation = MetAug(feature_weight=1.0, hidden_dim=8)
    augmentation.fit(SimpleNamespace(channels=3, image_size=16))
    loss = augmentation.loss(method)
    x = torch.rand(8, 3, 16, 16)
    views = [x + 0.1 * torch.randn_like(x) for _ in range(2)]
    plain, own = copy.deepcopy((method, loss))
    loss(method, *views).total.backward()
    z = [embedding_of(plain(x)) for x in views]
    made = [generator(part) for generator, part in zip(own.generators, z, strict=True)]
    (own.contrast(*z) + own.contrast(*z, *made)).backward()
    gradients = [[part.grad for part in network.parameters()] for network in (method, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dict(method.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)
    assert all(part.grad.any() for key, part in loss.named_parameters() if not key.endswith("bias"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.1, 0.1, True)),
        ({"preset": "released"}, (1e-5, 1e-11, False)),
        ({"preset": "released", "feature_weight": 2.0}, (2.0, 1e-11, False)),
        ({"preset": "released", "margin_weight": 0.0, "form": "weighted"}, (1e-5, 0.0, True)),
        ({"form": "released"}, (0.1, 0.1, False)),
    ],
)
def test_presets(options: dict[str, Any], expected: tuple[float, float, bool]) -> None:
    """Explicit options override the preset. They also do so in the bench, which fills in all defaults."""
    through = make_augmentation(resolve(RunConfig(method="simclr", aug="metaug", set={"aug": options})))
    for made in (MetAug(**options), through):
        assert (made.settings["feature_weight"], made.settings["margin_weight"], made.contrast.weighted) == expected


def test_refusals() -> None:
    reason = "it contrasts the embeddings of two views, and this method compares more"
    for name in ("dino", "swav"):
        assert MetAug.refuses(load("method", name)) == reason
        with pytest.raises(UsageError) as caught:
            resolve(RunConfig(method=name, aug="metaug"))
        assert str(caught.value) == f"'metaug' does not go with {name!r}: {reason}"
    assert not MetAug.compiles
    with pytest.raises(UsageError, match=r"^'metaug' does not work with torch\.compile: leave --compile out$"):
        resolve(RunConfig(method="byol", aug="metaug", compile=True))


@pytest.mark.parametrize("name", ["feature_weight", "margin_weight", "inner_lr", "lr"])
def test_bad_arguments(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} is -1.0, but expected float, 0 or more"):
        MetAug(**{name: -1.0})


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            {"z": torch.zeros(4, 2, 3)},
            "the first output of the model is (4, 2, 3), but expected an embedding of shape (N, D)",
        ),
        ([None], "the first output of the model is NoneType, but expected"),
        (
            (torch.zeros(4, 2), torch.zeros(4, 2, requires_grad=True)),
            "has no gradient, but expected one from the trained",
        ),
    ],
)
def test_outputs_that_are_no_embeddings(output: Any, text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        embedding_of(output)


def test_a_function_as_the_model() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    criterion = MetAugLoss(OUCLLoss(), [FeatureGenerator(4)] * 2, feature_weight=1, margin_weight=1)
    text = (
        "the model is 'Module._wrapped_call_impl', but MetAugLoss needs the parameters of an nn.Module: pass the module"
    )
    with pytest.raises(UsageError, match=rf"^{re.escape(text)} itself$"):
        criterion(network.__call__, *torch.randn(2, 4, 3, 2, 2))
    with pytest.raises(TypeError, match=r"FeatureGenerator.__init__\(\) missing 1 required positional argument: 'dim'"):
        FeatureGenerator()  # type: ignore[call-arg]


def test_an_embedding_is_the_first_of_several() -> None:
    z = torch.ones(2, 3, requires_grad=True)
    assert all(embedding_of(output) is z for output in (z, (z, None), [z], {"z": z, "other": None}))
