"""Outputs of a network's inner layers, to be evaluated instead of its features."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.errors import UsageError, suggestion

NUMBERS = 9216
"""A feature map is averaged to at most this many numbers for each image, as usual in evaluations of layers."""


class LayerOutputs(nn.Module):
    """Network whose features are the outputs of its layers with these names.

    A feature map (N, C, H, W) is averaged in squares until it has 9216 numbers or fewer for each image, as in Zhang et
    al., "Colorful Image Colorization", ECCV 2016, App. C. Swin's maps (N, H, W, C) are recognised by H = W ≠ C,
    since images are square. Tokens (N, T, D) are averaged over T. Several layers, such as those of CMC's two encoders,
    are concatenated.

    Args:
        network: Module of images (N, 3, H, W). It is used as it is.
        pattern: Name of a module, as in `network.named_modules()`. `*` stands for any text.

    Raises:
        UsageError: No module has such a name.
    """

    def __init__(self, network: nn.Module, pattern: str) -> None:
        super().__init__()
        self.network, self.pattern = network, pattern
        self.outputs: dict[str, Tensor] = {}
        named = {name: module for name, module in network.named_modules() if name}
        chosen = {name: module for name, module in named.items() if fnmatchcase(name, pattern)}
        if not chosen:
            raise UsageError(
                f"--layer is {pattern!r}, but the network has no such layer.{suggestion(pattern, named)} Its outer "
                f"layers are {', '.join(name for name in named if name.count('.') < 2)}"
            )
        for name, module in chosen.items():
            module.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.outputs[name] = _flat(name, output)

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs (N, D) of the layers for images (N, 3, H, W).

        Raises:
            UsageError: A layer was not used, or its output has another shape.
        """
        self.outputs = {}
        self.network(images)
        if not self.outputs:
            raise UsageError(f"--layer is {self.pattern!r}, but the network does not use it: choose another layer")
        outputs, self.outputs = self.outputs, {}
        return torch.cat(list(outputs.values()), 1)


def _flat(name: str, output: Any) -> Tensor:
    """Return the output of a layer as vectors (N, D), which the next layer cannot change in place."""
    if isinstance(output, Tensor):
        match output.shape:
            case (_, height, width, channels) if height == width != channels:
                return _flat(name, output.movedim(3, 1))
            case (_, channels, height, width):
                side = max(1, int((NUMBERS / channels) ** 0.5))
                return F.adaptive_avg_pool2d(output, (min(side, height), min(side, width))).flatten(1)
            case (_, _, _):
                return output.mean(1)
            case (_, _):
                return output.clone()
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UsageError(
        f"the output of layer {name} is {found}, but expected feature maps (N, C, H, W), tokens (N, T, D) or vectors "
        "(N, D): choose another --layer"
    )
