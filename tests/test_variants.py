from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from lightly.loss import NTXentLoss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly import CLAE, PGD, AdversarialLoss, PixelSpace, RandomDirection, ViewGenerator, dual_batchnorm
from idaa_lightly.batchnorm import adversarial_batchnorm
from idaa_lightly.cli import main
from idaa_lightly.errors import UsageError
from idaa_lightly.registry import load
from idaa_lightly.variants import (
    LOSSES,
    HalfBatchLoss,
    ReplacingLoss,
    ReusedGraphLoss,
    SharedBatchNormLoss,
    SharedReplacingLoss,
)  # fmt: skip

X0, X1 = torch.randn(2, 6, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def network(norm: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), *([nn.BatchNorm2d(8)] if norm else []), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 4)).double()


def gradients(loss: AdversarialLoss, model: nn.Module) -> tuple[Any, list[Tensor]]:
    model.zero_grad()
    output = loss(model, X0, X1)
    output.total.backward()
    return output, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_without_batchnorm_the_reused_graph_is_exact() -> None:
    model = network(norm=False)
    exact, reused = (gradients(kind(NTXentLoss(), CLAE(0.1)), model) for kind in (AdversarialLoss, ReusedGraphLoss))
    torch.testing.assert_close(reused[0], exact[0])
    torch.testing.assert_close(reused[1], exact[1])
    assert (exact[0].views - X0).abs().amax() == pytest.approx(0.1)


def test_the_reused_graph_leaves_the_statistics_of_the_clean_passes() -> None:
    model = dual_batchnorm(network(norm=True))
    plain = copy.deepcopy(model)
    output = ReusedGraphLoss(NTXentLoss(), CLAE(0.1))(model, X0, X1)
    expected = NTXentLoss()(plain(X0), plain(X1))
    torch.testing.assert_close(output.clean, expected.detach())
    for (name, value), (_, wanted) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(value, wanted, msg=name)


def test_the_reused_graph_allows_one_evaluation() -> None:
    for ascent in (PGD(0.1, steps=2), PGD(0.1, steps=1, random_start=True)):
        with pytest.raises(
            UsageError, match="allows one evaluation of the objective, at the input: use FGSM, or mode exact"
        ):
            ReusedGraphLoss(NTXentLoss(), ViewGenerator(PixelSpace(), ascent))(network(norm=False), X0, X1)
    model = network(norm=False)
    output = ReusedGraphLoss(NTXentLoss(), ViewGenerator(PixelSpace(), RandomDirection(0.1)))(model, X0, X1)
    torch.testing.assert_close(output.clean, NTXentLoss()(model(X0), model(X1)).detach())


@pytest.mark.parametrize("samples", [5, 6])
def test_half_of_the_batch(samples: int) -> None:
    """A loss that is a mean over samples gives each sample the same view, whichever other samples are attacked."""
    model, criterion = network(norm=False), nn.MSELoss()
    x0, x1 = X0[:samples] + 1, X1[:samples]
    shifted = lambda a, b: criterion(a, b + 1)  # noqa: E731 - its gradient does not vanish at the start
    half, exact = (kind(shifted, CLAE(0.1))(model, x0, x1) for kind in (HalfBatchLoss, AdversarialLoss))
    torch.testing.assert_close(half.views, exact.views[:3])
    torch.testing.assert_close(half.clean, exact.clean)
    torch.testing.assert_close(half.adversarial, shifted(model(x0[:3]), model(half.views)).detach())
    torch.testing.assert_close(half.total.detach(), half.clean + half.adversarial)
    assert [len(output) for output in half.outputs] == [3, 3, 3]


def test_half_of_an_output_with_other_parts() -> None:
    """Such as a scalar, and None for a part that some views lack."""
    model, weight = network(norm=False), torch.ones(())
    criterion = lambda a, b: nn.functional.mse_loss(a[0], b[0] + b[1])  # noqa: E731
    output = HalfBatchLoss(criterion, CLAE(0.1))(lambda x: (model(x), weight, None), X0, X1)
    assert [len(part[0]) for part in output.outputs] == [len(X0) // 2] * 3
    assert [part[1:] for part in output.outputs] == [(weight, None)] * 3


def test_shared_statistics_take_in_all_views_and_no_attack() -> None:
    model = network(norm=True)
    twin = copy.deepcopy(model)
    output = SharedBatchNormLoss(NTXentLoss(), CLAE(0.1))(model, X0, X1)
    for images in (X0, X1, output.views):
        twin(images)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_a_view_that_replaces_the_second_one() -> None:
    """L(f(x0), f_adv(x1')), with x1' one signed step from x1 against the fixed output of x0."""
    model, criterion = dual_batchnorm(network(norm=True)), NTXentLoss()
    output, found = gradients(ReplacingLoss(criterion, CLAE(0.1)), model)
    twin = dual_batchnorm(network(norm=True))
    anchor, x1 = twin(X0), X1.clone().requires_grad_()
    with adversarial_batchnorm(twin):
        (slope,) = torch.autograd.grad(criterion(anchor.detach(), twin(x1)), x1)
        views = X1 + 0.1 * slope.sign()
        loss = criterion(anchor, twin(views))
    torch.testing.assert_close(
        (output.total.detach(), output.adversarial, output.views), (loss.detach(),) * 2 + (views,)
    )
    twin.zero_grad()
    loss.backward()
    torch.testing.assert_close(found, [part.grad for part in twin.parameters() if part.grad is not None])
    for (name, value), (_, wanted) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(value, wanted, msg=name)
    torch.testing.assert_close(output.outputs[0], anchor.detach())
    assert output.outputs[1] is None


def test_a_replaced_view_through_the_same_batchnorm() -> None:
    """The running statistics take in x0 and x1', but none of the attack."""
    model = network(norm=True)
    twin = copy.deepcopy(model)
    output = SharedReplacingLoss(NTXentLoss(), CLAE(0.1))(model, X0, X1)
    torch.testing.assert_close(output.total, NTXentLoss()(twin(X0), twin(output.views)))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize(("place", "sixths"), [("add", 9), ("replace", 6)])
def test_flops_of_a_view_without_a_search(place: str, sixths: int) -> None:
    plugin = load("augmentation", "unperturbed")(branch="adversarial", place=place)
    method = load("method", "simclr")(nn.Identity(), 4)
    method.loss = lambda one, other: (one - other).square().sum()  # without counted operations
    model, x = dual_batchnorm(nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.Flatten())), X0.float()
    counts = []
    for step in (lambda: model(x).sum(), lambda: plugin.loss(method)(model, x, x).total):
        with FlopCounterMode(display=False) as counter:
            step().backward()
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == pytest.approx(sixths / 3, rel=0.01)


def test_flops() -> None:
    """Costs in forward passes. Clean pair: 2 × (1 + 2). Attack: 1 + 1, or 1 on the clean graph. x': 1 + 2."""
    model, x = nn.Sequential(nn.Conv2d(3, 64, 1), *(nn.Conv2d(64, 64, 1) for _ in range(20)), nn.Flatten()), X0.float()

    def flops(step: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            step().backward()
        return int(counter.get_total_flops())

    plain = flops(lambda: NTXentLoss()(model(x), model(x)))
    for mode, sixths in (("exact", 11), ("reused", 10), ("half", 8.5)):
        loss = LOSSES[mode](NTXentLoss(), CLAE(0.1))
        assert flops(lambda loss=loss: loss(model, x, x).total) / plain == pytest.approx(sixths / 6, rel=0.01), mode
    replacing = ReplacingLoss(NTXentLoss(), CLAE(0.1))
    assert flops(lambda: replacing(model, x, x).total) / plain == pytest.approx(8 / 6, rel=0.01)


@pytest.mark.parametrize("setting", ["mode=reused", "mode=half", "mode=shared", "place=replace"])
def test_modes_in_the_runner(setting: str) -> None:
    name, _, mode = setting.partition("=")
    options = ["--limit-train", "64", "--backbone", "resnet9-w4", "--batch-size", "32", "--epochs", "1"]
    arguments = ["run", "--aug", "clae", "--set", f"aug.{setting}", *options, "--accelerator", "cpu", "--out", mode]
    for command in (arguments, ["identity", mode, "--aug", "clae", "--samples", "40"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    assert json.loads(Path(mode, "record.json").read_text())["config"]["set"]["aug"][name] == mode


@pytest.mark.parametrize(
    ("aug", "options", "text"),
    [
        ("idaa", ["aug.steps=2"], "mode is reused, with steps 2 and decompose True: it needs 1 and true"),
        ("idaa", ["aug.decompose=false"], "with steps 1 and decompose False"),
        ("pgd", [], "mode is reused, which needs a single step from the input: choose clae, or mode exact"),
        ("clae", ["aug.place=replace"], "place is replace, with mode reused and weight 1.0: it needs mode exact or"),
        ("idaa", ["aug.search=network"], "search is network, with mode reused, steps 1 and norm linf: it needs mode"),
    ],
)
def test_a_search_that_cannot_reuse_the_graph(aug: str, options: list[str], text: str) -> None:
    settings = [part for option in ["aug.mode=reused", *options] for part in ("--set", option)]
    result = CliRunner().invoke(main, ["run", "--aug", aug, *settings, "--dry-run"])
    assert result.exit_code == 2
    assert text in result.output
