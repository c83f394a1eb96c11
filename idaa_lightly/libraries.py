"""Networks of torchvision and timm without their classifier, fitted to the size of the images."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torchvision
from torch import nn

from idaa_lightly.errors import UsageError, require_extra

SMALL = 64
"""Largest image size, in pixels, at which ResNets get the CIFAR stem and patches shrink."""
FAULTS = (AssertionError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""Exceptions that networks raise for sizes or options that they cannot work with."""


@dataclass(frozen=True)
class Blueprint:
    """Call that builds a network of a library, and the parts that are replaced afterwards.

    Attributes:
        library: "torchvision" or "timm".
        function: Name of the function inside the library, such as "models.resnet18".
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        parts: Constructors of the replaced parts, by their name in the network.
        trait: What differs from the library's default, for the log, such as "the CIFAR stem". Empty if nothing does.
    """

    library: str
    function: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, partial[Any]] = field(default_factory=dict)
    trait: str = ""

    def build(self, **more: Any) -> nn.Module:
        """Return the untrained network.

        Args:
            more: Further keyword arguments of the call, such as `pretrained`.
        """
        library = torchvision if self.library == "torchvision" else require_extra("timm", "vision", self.function)
        network = _built(partial(attrgetter(self.function)(library), *self.args, **self.kwargs, **more))
        for name, make in self.parts.items():
            part = make()
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            network.set_submodule(name, part)
        return network

    def code(self) -> list[str]:
        """Return lines of Python that build the same network as `model`."""
        lines = [f"import {self.library}, torch", f"model = {_call(f'{self.library}.{self.function}', self)}"]
        for name, make in self.parts.items():
            place = re.sub(r"\.(\d+)", r"[\1]", f"model.{name}")
            lines.append(f"{place} = {_call(f'torch.nn.{make.func.__name__}', make)}")
        return lines


def blueprint(name: str, image_size: int, library: str) -> Blueprint:
    """Plan a network of a library for images of a given size.

    For images of up to 64 px, the stem of a ResNet is replaced by the CIFAR stem: a 3×3 convolution with stride 1,
    without max-pooling. Patches of up to 4 px, as in Swin and ConvNeXt, shrink until 16 fit side by side. Larger ones,
    as in ViT, shrink until 8 do. Networks of other families are left as they are.

    Args:
        name: Name of the network in the library.
        image_size: Height and width of the images, in pixels.
        library: "torchvision" or "timm".

    Raises:
        MissingExtraError: timm is needed, but not installed.
        UsageError: The network does not exist, or does not map images of this size to one vector each.
    """
    try:
        plan = (_of_timm if library == "timm" else _of_torchvision)(name, image_size)
        _on_meta(plan.build)
        return plan
    except FAULTS as error:
        if isinstance(error, UsageError | ImportError):
            raise
        raise _unfit(name, image_size, error) from error


def features_of_a_batch(network: nn.Module, image_size: int, name: str) -> int:
    """Return the dimension of a network's features, from a forward pass in training mode without any computation.

    Args:
        network: Network to check. It stays unchanged.
        image_size: Height and width of the images, in pixels.
        name: Name of the network, for the error message.

    Raises:
        UsageError: The network does not map images (N, 3, H, W) of this size to features (N, D).
    """
    try:
        twin = copy.deepcopy(network).to("meta").train()
        output = twin(torch.empty(2, 3, image_size, image_size, device="meta"))
    except FAULTS as error:
        raise _unfit(name, image_size, error) from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise UsageError(
            f"backbone {name!r} gives {got} for 2 images, but expected features (2, D): choose a network that pools "
            "its maps, or wrap it in a backbone plugin"
        )
    return int(output.shape[1])


def _of_torchvision(name: str, image_size: int) -> Blueprint:
    args: tuple[Any, ...] = ()
    function = f"models.{name}"
    probe: Any = _on_meta(partial(torchvision.models.get_model, name))
    patch = _patch(probe, image_size)
    if isinstance(probe, torchvision.models.VisionTransformer):
        function, layers = "models.VisionTransformer", probe.encoder.layers
        sizes = len(layers), layers[0].num_heads, probe.hidden_dim, probe.mlp_dim
        args = (image_size, patch or probe.patch_size, *sizes)
    linear = [name for name, part in probe.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise UsageError(f"backbone {name!r} has no linear classifier to remove: choose another network")
    parts: dict[str, partial[Any]] = {linear[-1]: partial(nn.Identity)} | _cifar_stem(probe, image_size)
    parts |= {} if args else _patches(probe, patch)
    return Blueprint("torchvision", function, args, {}, parts, _trait(parts, patch))


def _of_timm(name: str, image_size: int) -> Blueprint:
    timm = require_extra("timm", "vision", f"backbone {name!r}, which torchvision does not have")
    probe = _on_meta(partial(timm.create_model, name, num_classes=0))
    patch = _patch(probe, image_size)
    parts, kwargs = _cifar_stem(probe, image_size), {"num_classes": 0}
    if _accepts(probe, "img_size"):
        # Small crops need a ViT that interpolates its position embedding and pads its images.
        wanted = {"img_size": image_size, "patch_size": patch, "dynamic_img_size": True, "dynamic_img_pad": True}
        kwargs |= {key: value for key, value in wanted.items() if value and _accepts(probe, key)}
        try:
            _on_meta(partial(timm.create_model, name, **kwargs))
        except TypeError:  # Some builders fix the size of their patches.
            kwargs.pop("patch_size", None)
        patch = kwargs.get("patch_size", 0)
    else:  # timm's `patch_size` would leave the total stride of a ConvNeXt as it is.
        parts |= _patches(probe, patch)
    return Blueprint("timm", "create_model", (name,), kwargs, parts, _trait(parts, patch))


def _cifar_stem(network: nn.Module, image_size: int) -> dict[str, partial[Any]]:
    """Return the parts of the CIFAR stem for a ResNet and small images, else nothing."""
    if type(network).__name__ != "ResNet" or image_size > SMALL:  # the name of the class in both libraries
        return {}
    widths = [part.out_channels for part in network.get_submodule("conv1").modules() if isinstance(part, nn.Conv2d)]
    stem = partial(nn.Conv2d, 3, widths[-1], 3, padding=1, bias=False)
    return {"conv1": stem, "maxpool": partial(nn.Identity)}


def _patches(network: nn.Module, patch: int) -> dict[str, partial[Any]]:
    """Return the first convolution with patches of another size, or nothing if the size is 0."""
    if not patch:
        return {}
    name, stem = next(item for item in network.named_modules() if isinstance(item[1], nn.Conv2d))
    return {name: partial(nn.Conv2d, 3, stem.out_channels, patch, patch)}


def _patch(network: nn.Module, image_size: int) -> int:
    """Return a patch size that fits small images. Return 0 if the network's own does, or if it has no patches."""
    first = next((part for part in network.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or image_size > SMALL or first.kernel_size != first.stride or first.stride[0] == 1:
        return 0
    size = int(first.stride[0])
    limit = max(1, image_size // (16 if size <= 4 else 8))
    fitting = max(patch for patch in range(1, limit + 1) if image_size % patch == 0)
    return fitting if fitting < size else 0


def _trait(parts: dict[str, partial[Any]], patch: int) -> str:
    if "maxpool" in parts:
        return "the CIFAR stem"
    return f"patches of {patch} px" if patch else ""


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network without memory, if that is possible. The random state is left unchanged."""
    with torch.random.fork_rng([]), torch.device("meta"):
        return _built(build)


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet announces another initialisation.
        try:
            return build()
        except RuntimeError as error:
            if "meta" not in str(error):
                raise
            # RegNets and older versions of timm compute widths or rates from tensors, which have no values on "meta".
            with torch.device("cpu"):
                return build()


def _accepts(network: nn.Module, argument: str) -> bool:
    """Return True if the constructor of the network's class, or of one of its bases, has the argument."""
    constructors = [vars(cls)["__init__"] for cls in type(network).__mro__ if "__init__" in vars(cls)]
    return any(argument in inspect.signature(constructor).parameters for constructor in constructors)


def _call(function: str, made: Blueprint | partial[Any]) -> str:
    keywords = made.kwargs if isinstance(made, Blueprint) else made.keywords
    arguments = [*map(repr, made.args), *(f"{key}={value!r}" for key, value in keywords.items())]
    return f"{function}({', '.join(arguments)})"


def _unfit(name: str, image_size: int, error: Exception) -> UsageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UsageError(
        f"backbone {name!r} does not work with images of {image_size} px ({reason}): choose another --image-size or "
        "backbone"
    )
