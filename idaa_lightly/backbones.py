"""Backbones by name: ResNets with a stem that fits the image size, and plugins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torchvision
from lightly.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.errors import UsageError, require_extra, suggestion
from idaa_lightly.plugin import Backbone
from idaa_lightly.registry import entries, load

SMALL = 64  # largest image size, in pixels, at which a ResNet gets the CIFAR stem
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


def create_backbone(name: str, image_size: int, options: Mapping[str, Any] | None = None) -> tuple[nn.Module, int]:
    """Create an untrained backbone without a classifier.

    For images of up to 64 px, the stem of a ResNet is replaced by the CIFAR stem: a 3×3 convolution with stride 1,
    without max-pooling. Narrow ResNets always have this stem.

    Args:
        name: Backbone plugin, or a ResNet of torchvision ("resnet18", "wide_resnet50_2") or timm ("resnet26d"). If
            both have the name, "timm/resnet18" selects timm's. A name such as "resnet18-w16" is a narrow ResNet
            (resnet9, 18 or 34) with 16 instead of 64 channels in the first stage.
        image_size: Height and width of the images, in pixels.
        options: Options of a plugin.

    Returns:
        The backbone, which maps images (N, 3, H, W) to features (N, num_features), and `num_features`.

    Raises:
        UsageError: The name is not a known backbone.
        PluginError: The plugin cannot be loaded.
        MissingExtraError: Torchvision does not have the model, and timm is not installed.
    """
    if entries("backbone", name):
        plugin: Backbone = load("backbone", name)(image_size, **(options or {}))
        return plugin, plugin.num_features
    narrow = re.fullmatch(r"(resnet\d+)-w(\d+)", name)
    if narrow and narrow[1] in NARROW_LAYERS and int(narrow[2]) > 0:
        network = NarrowResNet(NARROW_LAYERS[narrow[1]], int(narrow[2]))
        return network, network.num_features
    ours = torchvision.models.list_models(module=torchvision.models)
    if name in ours and "resne" in name:
        model = torchvision.models.get_model(name)
        num_features = model.fc.in_features
        model.fc = nn.Identity()
    else:
        timm = require_extra("timm", "vision", f"backbone {name!r}, which torchvision does not have")
        if not timm.is_model(name.removeprefix("timm/")):
            plugins = [entry.name for entry in entries("backbone")]
            known = [n for n in ours if "resne" in n] + timm.list_models("*resne*") + plugins
            raise UsageError(
                f"no backbone {name!r}; known are the ResNets of torchvision and timm, narrow ones such as "
                f"'resnet18-w16', and {', '.join(plugins)}.{suggestion(name, known)}"
            )
        model = timm.create_model(name.removeprefix("timm/"), num_classes=0)
        num_features = model.num_features
    if not (hasattr(model, "conv1") and hasattr(model, "maxpool")):
        raise UsageError(f"backbone {name!r} is not a ResNet: it has no conv1 and maxpool")
    if image_size <= SMALL:
        convolutions = [part for part in model.conv1.modules() if isinstance(part, nn.Conv2d)]
        model.conv1 = nn.Conv2d(3, convolutions[-1].out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model, num_features
