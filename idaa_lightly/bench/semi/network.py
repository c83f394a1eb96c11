"""Wide ResNets for small images."""

from __future__ import annotations

import re
from functools import partial

from torch import Tensor, nn

from idaa_lightly.errors import UsageError

leaky_relu = partial(nn.LeakyReLU, 0.1)


class Block(nn.Module):
    """Residual block of two 3×3 convolutions, each after a BatchNorm and a leaky ReLU.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        stride: Stride of the first convolution.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(before), leaky_relu())
        self.rest = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            leaky_relu(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
        )
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        activated = self.first(x)
        skipped = x if self.shortcut is None else self.shortcut(activated)
        output: Tensor = skipped + self.rest(activated)
        return output


class WideResNet(nn.Sequential):
    """Wide ResNet that maps images (N, 3, H, W) to features (N, 64 · width).

    Source: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016. Leaky ReLUs of slope 0.1 are those of Oliver et
    al., "Realistic Evaluation of Deep Semi-Supervised Learning Algorithms", NeurIPS 2018, and of FixMatch.

    Args:
        name: Depth and width, such as "wrn-28-2". The depth is 6 n + 4 for n blocks in each of three stages.

    Raises:
        UsageError: The name has another form.
    """

    def __init__(self, name: str) -> None:
        found = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
        depth, width = map(int, found.groups()) if found else (0, 0)
        if depth < 10 or (depth - 4) % 6 or not width:
            raise UsageError(
                f"backbone is {name!r}, but semi-supervised runs need wrn-DEPTH-WIDTH with a depth of 10, 16, 22, 28 "
                "and so on, such as wrn-28-2"
            )
        widths = [16, 16 * width, 32 * width, 64 * width]
        blocks = [
            Block(
                widths[stage] if index == 0 else widths[stage + 1], widths[stage + 1], 2 if stage and not index else 1
            )
            for stage in range(3)
            for index in range((depth - 4) // 6)
        ]
        super().__init__(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False),
            *blocks,
            nn.BatchNorm2d(widths[-1]),
            leaky_relu(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.num_features = widths[-1]
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, a=0.1, mode="fan_out", nonlinearity="leaky_relu")
