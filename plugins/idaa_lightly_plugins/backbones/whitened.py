"""Small convolutional network behind a fixed whitening layer, for runs on CPUs."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.options import Count
from idaa_lightly.plugin import Backbone

PATCH = 4  # pixels, height and width of a whitened patch; patches start every second pixel
DIRECTIONS = 32  # principal directions of patches, of 48
EPSILON = 5e-3  # added to the variances before whitening


class Whitened(Backbone):
    """Whitening layer of 4×4 patches, then three blocks of 3×3 convolutions with max-pooling between them.

    The whitening layer holds the leading principal directions of patches of the training images and their negatives,
    scaled to unit variance, and is not trained. Features are the mean over positions of the last block. With 32 px and
    the default width, an image costs 40 MFLOP.

    Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (arXiv:2404.00498), Sec. 3.1 and App. A.

    Differs from the paper: larger patches with a stride of 2, which make the network several times cheaper, ReLU, one
    convolution per block by default, no bias in the whitening layer, BatchNorm with a scale, and the mean as features
    instead of a classifier.

    Args:
        width: Channels of the last block. The first and the second have a quarter and a half of them.
        depth: Convolutions per block.
    """

    def __init__(self, image_size: int, *, width: Count = 256, depth: Count = 1) -> None:
        super().__init__(image_size)
        self.whitening = nn.Conv2d(3, 2 * DIRECTIONS, PATCH, stride=2, padding=1, bias=False).requires_grad_(False)
        sizes = [2 * DIRECTIONS, max(1, width // 4), max(1, width // 2), width]
        self.blocks = nn.Sequential(*(_block(a, b, depth, pool=i < 2) for i, (a, b) in enumerate(pairwise(sizes))))
        self.num_features = width

    def fit(self, images: Tensor) -> None:
        """Set the whitening layer from patches of normalised images (N, 3, H, W)."""
        patches = F.unfold(images, PATCH, stride=PATCH).permute(0, 2, 1).flatten(0, 1).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        rows = (directions / (variances + EPSILON).sqrt()).T.flip(0)[:DIRECTIONS]
        self.whitening.weight.copy_(torch.cat([rows, -rows]).view_as(self.whitening.weight))

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (N, width) from images (N, 3, H, W)."""
        maps: Tensor = self.blocks(F.relu(self.whitening(images)))
        return maps.mean((2, 3))


def _block(inside: int, outside: int, depth: int, *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in [inside, *[outside] * (depth - 1)]:
        layers += [nn.Conv2d(channels, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    if pool:
        layers.insert(1, nn.MaxPool2d(2))
    return nn.Sequential(*layers)
