"""Generators that learn: networks that make adversarial views, trained by ascent in the method's own backward pass.

Like a ViewGenerator they are called as `generator(images, objective)`, but they leave the objective alone: their views
stay in the graph, and the gradient that comes back through them is reversed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.ascent import Noise
from idaa_lightly.options import Count, Fraction, checked
from idaa_lightly.spaces import Pixels
from idaa_lightly.views import Objective


def reverse_gradient(x: Tensor) -> Tensor:
    """The same values, with the sign of the gradient turned: what follows descends, what made x ascends."""
    return 2 * x.detach() - x


class LearnedColor(nn.Module):
    """Mixes the colour channels of each image as one linear layer on its representation decides.

    α = (1 − eps) I + eps · softmax(W h + b), one row a channel, on images in [0, 1]; h = represent(x) without gradient,
    through the adversarial branch of its BatchNorms: a forward pass more.

    Source: Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", colour mixing (there eps = 1).

    Args:
        represent: images (N, 3, H, W) to representations (N, num_features).
        num_features: of the representation.
        normalize: `mean` and `std` per channel of the images, as for Lightly's transforms.
        eps: largest share of other channels.
    """

    @checked
    def __init__(
        self,
        represent: Callable[[Tensor], Tensor],
        num_features: int,
        normalize: dict[str, list[float]],
        *,
        eps: Fraction = 1.0,
    ) -> None:
        super().__init__()
        self.eps, self.pixels = eps, Pixels(normalize)
        self.layer = nn.Linear(num_features, 9)
        self.represent: list[Callable[[Tensor], Tensor]] = [represent]  # in a list, or a module would become a part

    def forward(self, x: Tensor, objective: Objective) -> Tensor:
        """Returns views of `x`, (N, 3, H, W), in the graph; `objective` is not asked."""
        with torch.no_grad():
            features = self.represent[0](x)
        mixed = self.layer(features).view(-1, 3, 3).softmax(2)
        alpha = torch.lerp(torch.eye(3, device=x.device, dtype=mixed.dtype), mixed, self.eps)
        with torch.autocast(x.device.type, enabled=False):  # half precision would round the images
            pixels = torch.einsum("nij,njhw->nihw", alpha.to(x.dtype), self.pixels.from_normalized(x))
            return reverse_gradient(self.pixels.normalized(pixels))


class Viewmaker(nn.Module):
    """A small network with noise input draws a perturbation of a given mean size.

    x' = clamp(x + δ) on images in [0, 1], δ scaled to a mean absolute value of `budget` for each image.

    Source: Tamkin et al., "Viewmaker Networks: Learning Views for Unsupervised Representation Learning", ICLR 2021,
    Sec. 3: the transfer network of Johnson et al. (ECCV 2016) with instance norm and three residual blocks, a channel
    of uniform noise added before each; budget 0.05 on CIFAR-10.

    Args:
        normalize: `mean` and `std` per channel of the images, as for Lightly's transforms.
        budget: mean absolute perturbation of a pixel in [0, 1].
        width: channels of the first layer; the innermost have four times as many.
        seed: of the noise.
    """

    @checked
    def __init__(
        self, normalize: dict[str, list[float]], *, budget: Fraction = 0.05, width: Count = 32, seed: int = 0
    ) -> None:
        super().__init__()
        channels = len(normalize["mean"])
        self.budget, self.pixels, self.noise = budget, Pixels(normalize), Noise(seed)
        self.down = nn.Sequential(
            _layer(channels, width, 9), _layer(width, 2 * width, 3, 2), _layer(2 * width, 4 * width, 3, 2)
        )
        sizes = [4 * width + block for block in range(4)]  # each block adds a channel of noise
        self.blocks = nn.ModuleList(
            nn.Sequential(_layer(size, size, 3), _layer(size, size, 3, act=False)) for size in sizes[1:]
        )
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2),
            _layer(sizes[-1], 2 * width, 3),
            nn.Upsample(scale_factor=2),
            _layer(2 * width, width, 3),
            nn.Conv2d(width, channels, 9, padding=4, padding_mode="reflect"),
        )

    def forward(self, x: Tensor, objective: Objective) -> Tensor:
        """Returns views of `x`, (N, C, H, W), in the graph; `objective` is not asked."""
        pixels = self.pixels.from_normalized(x)
        hidden = self.down(pixels)
        for block in self.blocks:
            drawn = 0.5 * (1 + torch.erf(self.noise.like(hidden[:, :1].float()) / 2**0.5))  # uniform in [0, 1]
            hidden = torch.cat([hidden, drawn.to(hidden.dtype)], 1)
            hidden = hidden + block(hidden)
        delta = F.interpolate(self.up(hidden), x.shape[-2:]).float()
        delta = self.budget * delta / delta.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-8)
        return reverse_gradient(self.pixels.normalized((pixels + delta).clamp(0, 1)).to(x.dtype))


def _layer(inside: int, outside: int, kernel: int, stride: int = 1, *, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, padding_mode="reflect")
    return nn.Sequential(conv, nn.InstanceNorm2d(outside, affine=True), nn.ReLU() if act else nn.Identity())
