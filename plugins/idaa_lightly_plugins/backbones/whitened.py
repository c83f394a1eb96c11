"""Small convolutional network behind a fixed whitening layer, for runs on CPUs."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.options import Count
from idaa_lightly.plugin import Backbone

PATCH = 2  # pixels, height and width of a whitened patch
EPSILON = 5e-4  # added to the variances before whitening, as in airbench


class Whitened(Backbone):
    """Whitening layer of 2×2 patches with GELU, then three blocks of two 3×3 convolutions with max-pooling.

    The whitening layer holds the principal directions of patches of the training images and their negatives, scaled to
    unit variance, and is not trained. Features are the mean and the maximum over positions of the last block.

    Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (arXiv:2404.00498), Sec. 3.1 and App. A.

    Differs from the paper: narrower blocks, no bias in the whitening layer, BatchNorm with a scale, and mean and
    maximum as features instead of a classifier.

    Args:
        width: Channels of the second and third block; the first has half of them.
    """

    def __init__(self, image_size: int, *, width: Count = 64) -> None:
        super().__init__(image_size)
        channels = 2 * 3 * PATCH**2
        self.whitening = nn.Conv2d(3, channels, PATCH, bias=False).requires_grad_(False)
        sizes = [channels, max(1, width // 2), width, width]
        self.blocks = nn.Sequential(*(_block(a, b) for a, b in pairwise(sizes)))
        self.num_features = 2 * width

    def fit(self, images: Tensor) -> None:
        """Set the whitening layer from patches of normalised images (N, 3, H, W)."""
        patches = F.unfold(images, PATCH).permute(0, 2, 1).flatten(0, 1).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        rows = (directions / (variances + EPSILON).sqrt()).T.flip(0)
        self.whitening.weight.copy_(torch.cat([rows, -rows]).view_as(self.whitening.weight))

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (N, 2 · width) from images (N, 3, H, W)."""
        maps = self.blocks(F.gelu(self.whitening(images))).flatten(2)
        return torch.cat([maps.mean(2), maps.amax(2)], 1)


def _block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(outside),
        nn.GELU(),
        nn.Conv2d(outside, outside, 3, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.GELU(),
    )
