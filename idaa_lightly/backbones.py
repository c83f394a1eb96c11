"""Backbones by name: networks of torchvision and timm, narrow ResNets, and plugins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torchvision
from lightly.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.errors import UsageError, require_extra, suggestion
from idaa_lightly.libraries import Blueprint, blueprint, features_of_a_batch
from idaa_lightly.plugin import Backbone
from idaa_lightly.registry import entries, load

NARROW_LAYERS = {"resnet9": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}


class NarrowResNet(ResNet):  # type: ignore[misc]
    """Lightly's CIFAR ResNet of any width and image size, without its classifier.

    Args:
        layers: Number of basic blocks in each stage.
        width: Channels of the first stage. The usual ResNet has 64.
    """

    def __init__(self, layers: list[int], width: int) -> None:
        super().__init__(BasicBlock, layers, width=width / 64)
        del self.linear
        self.num_features = 8 * width

    def forward(self, x: Tensor) -> Tensor:
        """Compute features (N, 8 · width) from images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


class Built(NamedTuple):
    """Untrained backbone without a classifier.

    Attributes:
        network: Module that maps images (N, 3, H, W) to features (N, num_features).
        num_features: Dimension of the features.
        trait: Property of the network that its name does not tell, such as "the CIFAR stem". May be empty.
        plan: Construction of the network by torchvision or timm. None for narrow ResNets and plugins.
    """

    network: nn.Module
    num_features: int
    trait: str
    plan: Blueprint | None


def create_backbone(name: str, image_size: int, options: Mapping[str, Any] | None = None) -> tuple[nn.Module, int]:
    """Create an untrained backbone without a classifier.

    For images of up to 64 px, a ResNet gets the CIFAR stem: a 3×3 convolution with stride 1, without max-pooling.
    Narrow ResNets always have it. Networks with patches get smaller patches for such images, see
    `idaa_lightly.libraries.blueprint`.

    Args:
        name: Backbone plugin, or a network of torchvision ("resnet18", "vit_b_16") or timm ("convnext_atto",
            "vit_tiny_patch16_224"). If both have the name, "timm/resnet18" selects timm's. A name such as
            "resnet18-w16" is a narrow ResNet (resnet9, 18 or 34) with 16 instead of 64 channels in the first stage.
        image_size: Height and width of the images, in pixels.
        options: Options of a plugin.

    Returns:
        The backbone, which maps images (N, 3, H, W) to features (N, num_features), and `num_features`.

    Raises:
        UsageError: The name is not a known backbone, or the network does not work with images of this size.
        PluginError: The plugin cannot be loaded.
        MissingExtraError: Torchvision does not have the network, and timm is not installed.
    """
    return build_backbone(name, image_size, options)[:2]


def build_backbone(name: str, image_size: int, options: Mapping[str, Any] | None = None, **timm: Any) -> Built:
    """Create an untrained backbone, and describe its construction. Arguments and errors are those of `create_backbone`.

    Args:
        name: Name of the backbone.
        image_size: Height and width of the images, in pixels.
        options: Options of a plugin.
        timm: Further arguments of `timm.create_model`, such as `pretrained`.
    """
    if entries("backbone", name):
        plugin: Backbone = load("backbone", name)(image_size, **(options or {}))
        return Built(plugin, plugin.num_features, "", None)
    narrow = re.fullmatch(r"(resnet\d+)-w(\d+)", name)
    if narrow and narrow[1] in NARROW_LAYERS and int(narrow[2]) > 0:
        network = NarrowResNet(NARROW_LAYERS[narrow[1]], int(narrow[2]))
        return Built(network, network.num_features, "the CIFAR stem", None)
    plan = blueprint(name.removeprefix("timm/"), image_size, library_of(name))
    model = plan.build(**timm)
    return Built(model, features_of_a_batch(model, image_size, name), plan.trait, plan)


def library_of(name: str) -> str:
    """Return "torchvision" or "timm", the library that builds a network.

    Args:
        name: Name of the network, with "timm/" in front to prefer timm's.

    Raises:
        UsageError: Neither library has the network.
        MissingExtraError: Torchvision does not have the network, and timm is not installed.
    """
    ours = torchvision.models.list_models(module=torchvision.models)
    if name in ours:
        return "torchvision"
    timm = require_extra("timm", "vision", f"backbone {name!r}, which torchvision does not have")
    if timm.is_model(name.removeprefix("timm/")):
        return "timm"
    plugins = [entry.name for entry in entries("backbone")]
    raise UsageError(
        f"no backbone {name!r}; known are the networks of torchvision and timm, narrow ones such as 'resnet18-w16', "
        f"and {', '.join(plugins)}.{suggestion(name, [*ours, *timm.list_models(), *plugins])}"
    )
