"""Dual BatchNorm: separate normalisation of clean and adversarial images.

Adversarial and clean images have different statistics, and sharing one BatchNorm hurts both (AdvProp, Xie et al., CVPR
2020, Sec. 4). `dual_batchnorm` gives every BatchNorm of a module a second, adversarial branch.

Differs from the paper: the adversarial branch keeps no running statistics. Evaluation always uses the clean branch, so
nothing would ever read them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from idaa_lightly.errors import ModelError

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)


class DualBatchNorm(nn.Module):
    """BatchNorm with a clean and an adversarial branch.

    The clean branch is the given module itself and keeps its keys in the state dict. An ordinary checkpoint therefore
    loads strictly, and also initialises the adversarial branch. The adversarial branch always normalises by the
    statistics of its batch. In eval mode the clean branch is used, whichever branch is selected.

    Args:
        norm: Any BatchNorm: 1d, 2d, 3d, synchronised, or a subclass such as timm's BatchNormAct2d.

    Shape:
        - Input and output: Shapes of `norm`.

    Example:
        >>> norm = DualBatchNorm(nn.BatchNorm2d(8, track_running_stats=False))
        >>> sorted(norm.state_dict())
        ['adversarial.bias', 'adversarial.weight', 'bias', 'weight']
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.clean = norm
        group = getattr(norm, "process_group", None)  # Shared, because it cannot be copied.
        self.adversarial = copy.deepcopy(norm, {id(group): group})
        self.adversarial.track_running_stats = False
        self.adversarial.running_mean = None
        self.adversarial.running_var = None
        self.adversarial.num_batches_tracked = None
        self.adversarial.train()  # Stays in training mode, because it is used only there.
        self.use_adversarial = False
        self.training = norm.training

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the clean branch. The adversarial branch stays in training mode."""
        self.training = mode
        self.clean.train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` with the selected branch."""
        branch = self.adversarial if self.use_adversarial and self.training else self.clean
        output: Tensor = branch(x)
        return output

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict, with the clean branch under the keys of the original BatchNorm."""
        state = super().state_dict(*args, **kwargs)
        prefix = args[1] if len(args) > 1 else kwargs.get("prefix", "")
        for key in [key for key in state if key.startswith(f"{prefix}clean.")]:
            state[prefix + key.removeprefix(f"{prefix}clean.")] = state.pop(key)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = [key for key in state_dict if key.startswith(prefix)]
        branch = f"{prefix}adversarial."
        seen = any(key.startswith(branch) for key in own)
        for key in own:
            name = key.removeprefix(prefix)
            if not key.startswith(branch):
                value = state_dict.pop(key)
                state_dict[f"{prefix}clean.{name}"] = value
                if not seen and name in self.adversarial.state_dict():
                    state_dict[branch + name] = value.clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


def dual_batchnorm(module: nn.Module) -> nn.Module:
    """Give every BatchNorm in `module` an adversarial branch, in place.

    The existing parameters stay the same objects. An optimiser made earlier therefore keeps training the clean branch.
    Pass it `adversarial_parameters(module)` as well. Convert before momentum (EMA) copies are made, or convert a module
    that contains both the model and its copies. Call `SyncBatchNorm.convert_sync_batchnorm` before or after this
    function, but timm's `convert_sync_batchnorm` only before it. Converting a module twice has no effect.

    Args:
        module: Any module. One without a BatchNorm is returned unchanged.

    Returns:
        The module. It is a new module only if `module` is itself a BatchNorm.

    Example:
        >>> model = dual_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # afterwards
        >>> type(model[1]).__name__
        'DualBatchNorm'
    """
    return _replace(module, _BatchNorm, DualBatchNorm)


def strip_dual_batchnorm(module: nn.Module) -> nn.Module:
    """Remove the adversarial branches in place, which gives an ordinary module with bit-equal clean features.

    Args:
        module: Module that `dual_batchnorm` may have converted.

    Returns:
        The module. If `module` is itself a `DualBatchNorm`, the BatchNorm inside it.

    Example:
        >>> model = dual_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> type(strip_dual_batchnorm(model)[1]).__name__
        'BatchNorm2d'
    """
    return _replace(module, DualBatchNorm, lambda dual: dual.clean)


def adversarial_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of the adversarial branches, for an optimiser that was made before the conversion.

    Args:
        module: Module that `dual_batchnorm` has converted.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> new = adversarial_parameters(dual_batchnorm(model))
        >>> optimizer.add_param_group({"params": list(new)})
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [4, 2]
    """
    for part in module.modules():
        if isinstance(part, DualBatchNorm):
            yield from part.adversarial.parameters()


@contextmanager
def adversarial_batchnorm(module: nn.Module) -> Iterator[None]:
    """Select the adversarial branches of `module` inside the with-block. Restore the earlier selection on exit.

    Args:
        module: Module that `dual_batchnorm` has converted.

    Example:
        >>> model = dual_batchnorm(nn.Sequential(nn.BatchNorm1d(8)))
        >>> with adversarial_batchnorm(model):
        ...     output = model(5 + torch.randn(4, 8))
        >>> bool(model[0].clean.running_mean.any())  # statistics of clean images
        False
    """
    duals = [part for part in module.modules() if isinstance(part, DualBatchNorm)]
    before = [dual.use_adversarial for dual in duals]
    try:
        for dual in duals:
            dual.use_adversarial = True
        yield
    finally:
        for dual, selected in zip(duals, before, strict=True):
            dual.use_adversarial = selected


def require_dual_batchnorm(module: nn.Module) -> None:
    """Check that every BatchNorm in `module` has an adversarial branch.

    Args:
        module: Any module.

    Raises:
        ModelError: A BatchNorm has no adversarial branch. The message names the layer and the call that adds one.
    """
    duals = [part for part in module.modules() if isinstance(part, DualBatchNorm)]
    inside = {id(branch) for dual in duals for branch in (dual.clean, dual.adversarial)}
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and id(part) not in inside:
            raise ModelError(
                f"{type(part).__name__} at {name or 'the top'!r} has no adversarial branch, so adversarial images "
                "would disturb its running statistics: call idaa_lightly.dual_batchnorm(model) before the optimiser "
                "is made."
            )


class TrainingWatch:
    """Warns once if the optimiser trains the clean branches but not the adversarial ones.

    After 5 steps, the branches are compared with those of the first step. The comparison is repeated after twice as
    many steps until one of them has changed. Other steps read no values, so they do not wait for the device.
    """

    def __init__(self) -> None:
        self.steps, self.check_at = 0, 5
        self.start: list[tuple[Tensor, Tensor]] = []  # clean and adversarial; empty after the last comparison

    def step(self, network: nn.Module) -> None:
        """Count a training step, before its forward pass.

        Args:
            network: Module that `dual_batchnorm` has converted.
        """
        if self.steps == 0:
            self.start = [(clean.clone(), adversarial.clone()) for clean, adversarial in _branches(network)]
        elif self.start and self.steps == self.check_at:
            self.check_at *= 2
            now = list(_branches(network))
            if len(now) != len(self.start):  # A BatchNorm was frozen or stripped, or it is another network.
                now = self.start = []
            moved = [
                [not torch.equal(before, after.to(before.device)) for before, after in zip(*pair, strict=True)]
                for pair in zip(self.start, now, strict=True)
            ]
            clean, adversarial = (any(branch[side] for branch in moved) for side in (0, 1))
            if clean and not adversarial:
                log.warning(
                    f"Warning: the adversarial branches of the BatchNorms have not changed in {self.steps} steps, but "
                    "the clean ones have: call dual_batchnorm(model) before the optimiser is made, or add them to it "
                    'by optimizer.add_param_group({"params": list(adversarial_parameters(model))}).'
                )
            if clean or adversarial:
                self.start = []
        self.steps += 1


def _branches(network: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the trainable parameters of the clean branches, each with its adversarial counterpart."""
    for dual in network.modules():
        if isinstance(dual, DualBatchNorm):
            for clean, adversarial in zip(dual.clean.parameters(), dual.adversarial.parameters(), strict=True):
                if clean.requires_grad:
                    yield clean.detach(), adversarial.detach()


def _replace(module: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> nn.Module:
    """Replace every outermost module of type `kind` by `make(it)`. A shared module stays shared."""
    made: dict[int, nn.Module] = {}

    def visit(part: nn.Module) -> nn.Module:
        if id(part) not in made:
            made[id(part)] = make(part) if isinstance(part, kind) else part
            if not isinstance(part, kind | DualBatchNorm):
                for name, child in list(part._modules.items()):  # named_children() skips shared modules.
                    if child is not None:
                        part._modules[name] = visit(child)
        return made[id(part)]

    return visit(module)
