from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from lightly.models import ResNetGenerator
from lightly.models.modules import SimCLRProjectionHead
from lightly.models.utils import update_momentum
from timm.layers import convert_sync_batchnorm
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from idaa_lightly import (
    CLAE,
    AdversarialLoss,
    DualBatchNorm,
    adversarial_batchnorm,
    adversarial_parameters,
    dual_batchnorm,
    strip_dual_batchnorm,
)
from idaa_lightly.errors import ModelError


class Shared(nn.Module):
    """Model that uses one BatchNorm in three places, one of them in a child module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.again = nn.BatchNorm2d(3)
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), self.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.norm(self.block(x) + 1))


def small() -> nn.Module:
    block = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 4, 3), block, nn.Flatten(), nn.Linear(64, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (torchvision.models.resnet18, (4, 3, 32, 32)),
    "resnet50": (partial(torchvision.models.resnet50, width_per_group=8), (4, 3, 32, 32)),
    "timm-resnet10t": (partial(timm.create_model, "resnet10t"), (4, 3, 32, 32)),
    "timm-efficientnet_b0": (partial(timm.create_model, "efficientnet_b0", num_classes=0), (4, 3, 32, 32)),
    "head": (partial(SimCLRProjectionHead, 6, 5, 4), (4, 6)),
    "3d": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU()), (2, 1, 4, 4, 4)),
    "small": (small, (4, 3, 6, 6)),
    "itself": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 5)),
    "shared": (Shared, (4, 3, 5, 5)),
}
Case = tuple[nn.Module, Tensor]


@torch.no_grad()
def disturb(model: nn.Module, seed: int) -> nn.Module:
    """Overwrite all parameters and statistics of all norms with distinct values, and return the model."""
    generator = torch.Generator().manual_seed(seed)
    for norm in norms(model):
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.fill_(seed)
    return model


@cache
def pristine(name: str) -> Case:
    build, shape = MODELS[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return disturb(build(), 1), torch.randn(shape)


def fresh(name: str) -> Case:
    return copy.deepcopy(pristine(name))


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    return fresh(request.param)


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [part for part in model.modules() if isinstance(part, _BatchNorm)]


def duals(model: nn.Module) -> list[DualBatchNorm]:
    return [part for part in model.modules() if isinstance(part, DualBatchNorm)]


def parts(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules(remove_duplicate=False))


def ids(tensors: Iterable[Tensor]) -> set[int]:
    return {id(tensor) for tensor in tensors}


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in tensors.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def clean_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if "adversarial" not in key.split(".")}


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the outputs of both branches in train mode and of eval mode. The model is copied and stays unchanged."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        found = {"clean": model.train()(x)}
        with adversarial_batchnorm(model):
            found["adversarial"] = model(x)
        return {**found, "eval": model.eval()(x)}


def test_convert_twice_and_strip(case: Case) -> None:
    model, _ = case
    names, before, parameters = parts(model), norms(model), ids(model.parameters())
    converted = dual_batchnorm(model)
    assert (converted is model) == (not isinstance(model, _BatchNorm))
    assert [dual.clean for dual in duals(converted)] == before != []
    added = list(adversarial_parameters(converted))
    assert len(added) == sum(len(list(norm.parameters())) for norm in before)
    assert not parameters & ids(added)
    assert ids(converted.parameters()) == parameters | ids(added)
    for dual in duals(converted):
        assert type(dual.adversarial) is type(dual.clean)
        assert dual.training
        assert_same(dict(dual.adversarial.named_parameters()), dict(dual.clean.named_parameters()))
        assert list(dual.adversarial.buffers()) == []
    once = parts(converted)
    assert parts(dual_batchnorm(converted)) == once
    assert parts(strip_dual_batchnorm(converted)) == names  # The same objects, and shared modules are shared again.


def test_state_dict_holds_the_originals_keys_and_the_branch(case: Case) -> None:
    model, _ = case
    before = copied(model.state_dict())
    stems = [f"{name}." if name else "" for name, part in parts(model).items() if isinstance(part, _BatchNorm)]
    converted = dual_batchnorm(model)
    state = converted.state_dict()
    assert_same(clean_part(state), before)
    assert state.keys() - before.keys() == {f"{stem}adversarial.{end}" for stem in stems for end in ("weight", "bias")}
    prefixed = converted.state_dict(prefix="net.")
    assert_same({key.removeprefix("net."): value for key, value in prefixed.items()}, state)


@pytest.mark.parametrize("assign", [False, True])
def test_ordinary_checkpoint_initialises_both_branches(case: Case, assign: bool) -> None:
    model, x = case
    checkpoint = copied(model.state_dict())
    target = disturb(dual_batchnorm(copy.deepcopy(model)), 2)
    lent = copied(checkpoint)
    target.load_state_dict(lent, strict=True, assign=assign)
    assert_same(lent, checkpoint)
    assert_same(clean_part(target.state_dict()), checkpoint)
    assert_same(outputs(target, x), outputs(dual_batchnorm(model), x))
    with torch.no_grad():
        for parameter in adversarial_parameters(target):
            parameter.fill_(9)
    assert_same(clean_part(target.state_dict()), checkpoint)  # The branches share no memory.


def test_converted_checkpoint_round_trips(case: Case) -> None:
    model, x = case
    trained = disturb(dual_batchnorm(copy.deepcopy(model)), 3)
    assert all(not torch.equal(dual.clean.weight, dual.adversarial.weight) for dual in duals(trained))
    torch.save(trained.state_dict(), file := io.BytesIO())
    file.seek(0)
    restored = dual_batchnorm(model)
    restored.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same(restored.state_dict(), trained.state_dict())
    assert_same(outputs(restored, x), outputs(trained, x))


@pytest.mark.parametrize("problem", ["Missing", "Unexpected"])
def test_strict_loading_stays_strict(problem: str) -> None:
    model, _ = fresh("small")
    state = model.state_dict()
    if problem == "Missing":
        del state["1.0.weight"]
    else:
        state["1.0.other"] = torch.ones(4)
    with pytest.raises(RuntimeError, match=rf"{problem} key\(s\) in state_dict"):
        dual_batchnorm(model).load_state_dict(state)


def test_stripped_model_is_the_ordinary_one(case: Case) -> None:
    model, x = case
    converted = dual_batchnorm(copy.deepcopy(model))
    assert torch.equal(converted(x), model(x))  # This also updates the running statistics of both.
    with adversarial_batchnorm(converted):
        converted(x * 3)
    stripped = strip_dual_batchnorm(converted)
    assert list(stripped.state_dict()) == list(model.state_dict())
    assert_same(stripped.state_dict(), model.state_dict())
    assert torch.equal(stripped.eval()(x), model.eval()(x))
    disturb(stripped, 4).load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(stripped(x), model(x))


def test_branches(case: Case) -> None:
    """Eval mode always uses the clean branch. In train mode, the adversarial branch leaves no trace."""
    model, x = case
    expected = copy.deepcopy(model).eval()(x)
    converted = dual_batchnorm(model.eval())
    for dual in duals(converted):
        disturb(dual.adversarial, 2)
    before = copied(converted.state_dict())
    with adversarial_batchnorm(converted):
        assert torch.equal(converted(x), expected)
        adversarial = converted.train()(x + 5)
    assert torch.equal(converted.eval()(x), expected)
    assert_same(converted.state_dict(), before)
    assert not torch.equal(converted.train()(x + 5), adversarial)
    moved = [key for key, value in converted.state_dict().items() if not torch.equal(value, before[key])]
    assert {key.rpartition(".")[2] for key in moved} == {"running_mean", "running_var", "num_batches_tracked"}


def test_adversarial_branch_by_hand() -> None:
    dual = DualBatchNorm(nn.BatchNorm1d(1, eps=3.0))
    with torch.no_grad():
        dual.adversarial.weight.fill_(10)
        dual.adversarial.bias.fill_(5)
    x = torch.tensor([[1.0], [3.0]])  # Mean 2 and variance 1, so (x - 2) / sqrt(1 + 3) = ±0.5.
    with adversarial_batchnorm(dual):
        assert dual(x).tolist() == [[0.0], [10.0]]
    assert dual(x).tolist() == [[-0.5], [0.5]]
    assert dual.clean.running_mean.tolist() == pytest.approx([0.2])


@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6),
    momentum=st.one_of(st.none(), st.floats(0.01, 1)),
    options=st.fixed_dictionaries({"affine": st.booleans(), "track_running_stats": st.booleans()}),
)
def test_clean_branch_is_the_plain_norm(
    steps: list[tuple[bool, bool]], momentum: float | None, options: dict[str, bool]
) -> None:
    """The clean branch equals the plain norm, whatever the adversarial branch has seen in between."""
    plain = disturb(nn.BatchNorm2d(2, momentum=momentum, **options), 1)
    dual = dual_batchnorm(copy.deepcopy(plain))
    for seed, (adversarial, training) in enumerate(steps):
        x = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(seed))
        if adversarial:
            with adversarial_batchnorm(dual.train(training)):
                found = dual(x)
            expected = copy.deepcopy(plain).train(training)(x)
        else:
            found, expected = dual.train(training)(x), plain.train(training)(x)
        assert torch.equal(found, expected)
        assert_same(clean_part(dual.state_dict()), dict(plain.state_dict()))


def test_context_restores_after_exceptions_and_nesting() -> None:
    model = dual_batchnorm(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)))

    def selected() -> list[bool]:
        return [dual.use_adversarial for dual in duals(model)]

    def fail() -> None:
        with adversarial_batchnorm(model):
            with adversarial_batchnorm(model):
                assert selected() == [True, True]
            assert selected() == [True, True]
            raise ZeroDivisionError

    with adversarial_batchnorm(model[0]):
        assert selected() == [True, False]
        with pytest.raises(ZeroDivisionError):
            fail()
        assert selected() == [True, False]
    assert selected() == [False, False]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_independent(case: Case, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model, x = case
    model = disturb(dual_batchnorm(model), 3)
    twin = duplicate(model)
    before = copied(model.state_dict())
    assert_same(twin.state_dict(), before)
    assert_same(outputs(twin, x), outputs(model, x))
    disturb(twin, 4)
    assert_same(model.state_dict(), before)
    with adversarial_batchnorm(twin):
        assert not any(dual.use_adversarial for dual in duals(model))


def sync_after(model: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(dual_batchnorm(model))


def test_a_process_group_is_shared_by_both_branches() -> None:
    """Groups cannot be copied, and neither can locks."""
    group = threading.Lock()
    dual: Any = dual_batchnorm(nn.SyncBatchNorm(3, process_group=group))
    assert dual.clean.process_group is dual.adversarial.process_group is group


def sync_before(model: nn.Module) -> nn.Module:
    return dual_batchnorm(convert_sync_batchnorm(model))


@pytest.mark.parametrize(
    ("name", "convert", "kind"),
    [(name, sync_after, nn.SyncBatchNorm) for name in ("resnet18", "head", "3d", "itself", "shared")]
    + [("timm-efficientnet_b0", sync_before, SyncBatchNormAct), ("resnet18", sync_before, nn.SyncBatchNorm)],
)
def test_sync_batchnorm(name: str, convert: Callable[[nn.Module], nn.Module], kind: type[nn.Module]) -> None:
    """SyncBatchNorm comes from torch's converter after the dual conversion, or from timm's before it."""
    model, x = fresh(name)
    original, state, parameters = copy.deepcopy(model), copied(model.state_dict()), ids(model.parameters())
    synced = convert(model)
    assert parameters < ids(synced.parameters())
    assert {type(norm) for norm in norms(synced)} == {kind}
    assert all(list(dual.adversarial.buffers()) == [] for dual in duals(synced))
    with adversarial_batchnorm(synced):
        synced(x)
    assert_same(clean_part(synced.state_dict()), state)
    disturb(synced, 5).load_state_dict(state, strict=True)
    assert_same(outputs(synced, x), outputs(dual_batchnorm(copy.deepcopy(original)), x))
    stripped = strip_dual_batchnorm(synced)
    assert {type(norm) for norm in norms(stripped)} == {kind}
    assert duals(stripped) == []
    assert_same(stripped.state_dict(), state)
    assert torch.equal(stripped.eval()(x), original.eval()(x))


def test_lightlys_split_batchnorm() -> None:
    original = disturb(ResNetGenerator("resnet-9", width=0.125, num_splits=2), 1)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    converted = dual_batchnorm(copy.deepcopy(original))
    with adversarial_batchnorm(converted):
        converted(x)
    assert torch.equal(converted(x), original(x))
    assert torch.equal(converted.eval()(x), original.eval()(x))


def test_compiled_model_switches_branches() -> None:
    model, x = fresh("small")
    model = disturb(dual_batchnorm(model), 3)
    expected = outputs(model, x)
    assert not torch.equal(expected["clean"], expected["adversarial"])
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            with adversarial_batchnorm(compiled):
                assert torch.equal(compiled(x), expected["adversarial"])
            assert torch.equal(compiled(x), expected["clean"])
    assert [int(dual.clean.num_batches_tracked) for dual in duals(model)] == [5]
    with adversarial_batchnorm(compiled), torch.no_grad():
        assert torch.equal(compiled.eval()(x), model(x))


def test_optimiser_made_before_the_conversion() -> None:
    model, x = fresh("small")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    dual_batchnorm(model)
    optimiser.add_param_group({"params": list(adversarial_parameters(model)), "lr": 0.25})
    rate = {id(parameter): group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    assert rate.keys() == ids(model.parameters())
    before = copied(dict(model.named_parameters()))
    loss = model(x).square().sum()
    with adversarial_batchnorm(model):
        (loss + model(x).sum()).backward()
    optimiser.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        torch.testing.assert_close(parameter.detach(), before[name] - rate[id(parameter)] * parameter.grad)
    assert sorted(rate.values()) == [0.25] * 2 + [0.5] * 6


def test_momentum_copy_made_after_the_conversion() -> None:
    model = disturb(dual_batchnorm(fresh("small")[0]), 3)
    momentum = disturb(copy.deepcopy(model), 4)
    before = copied(dict(momentum.named_parameters()))
    update_momentum(model, momentum, 0.9)
    after = dict(momentum.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * parameter)


@pytest.mark.parametrize("bound", [False, True])
def test_unconverted_norm_raises(bound: bool) -> None:
    model, x = fresh("small")
    loss = AdversarialLoss(NTXentLoss(), CLAE())
    call = model.forward if bound else model
    before = copied(model.state_dict())
    with pytest.raises(ModelError) as raised:
        loss(call, x, x)
    assert str(raised.value) == (
        "BatchNorm2d at '1.0' has no adversarial branch, so adversarial images would disturb its running statistics: "
        "call idaa_lightly.dual_batchnorm(model) before the optimiser is made."
    )
    assert_same(model.state_dict(), before)
    dual_batchnorm(model)
    assert loss(call, x, x + 1).total.isfinite()
    model.append(nn.BatchNorm1d(2))
    with pytest.raises(ModelError, match=r"^BatchNorm1d at '4' .* call idaa_lightly.dual_batchnorm\(model\)"):
        loss(call, x, x)


def test_model_without_batchnorm_passes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Flatten())
    assert dual_batchnorm(model) is model
    assert list(adversarial_parameters(model)) == duals(model) == []
    x = pristine("small")[1]
    assert AdversarialLoss(NTXentLoss(), CLAE())(model, x, x + 1).total.isfinite()
