"""View generators that are networks, trained in the method's own backward pass.

Like a `ViewGenerator`, each is called as `generator(images, objective)`, but it never evaluates the objective. Its
views stay in the graph. `Direction` decides whether the gradient that flows back through them is reversed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.ascent import Noise
from idaa_lightly.isolation import module_of, preserved_buffers
from idaa_lightly.options import Count, Fraction, NonNegative, checked
from idaa_lightly.spaces import LatentSpace, Pixels
from idaa_lightly.views import Objective

Direction = Literal["ascend", "descend"]
"""Direction in which a generator is trained. `ascend` raises the loss that the method lowers, `descend` lowers it."""


def reverse_gradient(x: Tensor) -> Tensor:
    """Return the values of `x`, with the sign of the gradient reversed.

    If the result enters a loss that is minimised, the parameters behind `x` are trained to raise the loss.

    Args:
        x: Tensor of any shape.
    """
    return 2 * x.detach() - x


def _directed(views: Tensor, direction: Direction) -> Tensor:
    return reverse_gradient(views) if direction == "ascend" else views


class LearnedColor(nn.Module):
    """Colour mixing whose weights a linear layer predicts from each image's representation.

    α = (1 − eps) I + eps · softmax(W h + b) mixes images in [0, 1], with one row per channel. h = represent(x) is
    computed without gradient, which costs one more forward pass. Inside `AdversarialLoss`, this pass uses the
    adversarial branch of the BatchNorms.

    Source: Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", colour mixing. The paper has eps = 1.

    Args:
        represent: Function that maps images (N, 3, H, W) to representations (N, num_features) or maps (N, C, h, w) of
            as many values. It leaves no trace in running statistics.
        num_features: Dimension of the representation.
        normalize: Keys `mean` and `std`, one value per channel of the images, as in Lightly's transforms.
        eps: Largest share of other channels in a channel.
        direction: Train the layer to raise (`ascend`) or to lower (`descend`) the loss.

    Example:
        >>> backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> generator = LearnedColor(backbone, 3, {"mean": [0.5] * 3, "std": [0.25] * 3})
        >>> x0, x1 = torch.randn(2, 4, 3, 8, 8)
        >>> AdversarialLoss(NTXentLoss(), generator)(nn.Flatten(), x0, x1).total.backward()
        >>> generator.layer.weight.grad.shape
        torch.Size([9, 3])
    """

    @checked
    def __init__(
        self,
        represent: Callable[[Tensor], Tensor],
        num_features: int,
        normalize: dict[str, list[float]],
        *,
        eps: Fraction = 1.0,
        direction: Direction = "ascend",
    ) -> None:
        super().__init__()
        self.eps, self.pixels, self.direction = eps, Pixels(normalize), direction
        self.layer = nn.Linear(num_features, 9)
        self.represent: list[Callable[[Tensor], Tensor]] = [represent]  # Kept in a list, so that it is not a submodule.

    def forward(self, x: Tensor, objective: Objective) -> Tensor:
        """Return views of `x`, (N, 3, H, W), in the graph. `objective` is never evaluated."""
        represent = self.represent[0]
        with torch.no_grad(), preserved_buffers(module_of(represent), norms=True):
            features = represent(x).flatten(1)
        mixed = self.layer(features).view(-1, 3, 3).softmax(2)
        alpha = torch.lerp(torch.eye(3, device=x.device, dtype=mixed.dtype), mixed, self.eps)
        with torch.autocast(x.device.type, enabled=False):  # Half precision would round the images.
            pixels = torch.einsum("nij,njhw->nihw", alpha.to(x.dtype), self.pixels.from_normalized(x))
            return _directed(self.pixels.normalized(pixels), self.direction)


class Viewmaker(nn.Module):
    """Viewmaker network: draws a perturbation of a given mean size from an image and noise.

    x' = clamp(x + δ) on images in [0, 1]. For each image, δ is scaled to a mean absolute value of `budget`.

    Source: Tamkin et al., "Viewmaker Networks: Learning Views for Unsupervised Representation Learning", ICLR 2021,
    Sec. 3. The network is the transfer network of Johnson et al. (ECCV 2016) with instance norm and three residual
    blocks. A channel of uniform noise is added before each block. The paper takes a budget of 0.05 on CIFAR-10.

    Args:
        normalize: Keys `mean` and `std`, one value per channel of the images, as in Lightly's transforms.
        budget: Mean absolute perturbation of a pixel, on images in [0, 1].
        width: Number of channels of the first layer. The innermost layers have four times as many, plus noise.
        seed: Seed of the noise.
        direction: Train the network to raise (`ascend`, as in the paper) or to lower (`descend`) the loss.

    Example:
        >>> generator = Viewmaker({"mean": [0.5] * 3, "std": [0.25] * 3}, width=4)
        >>> x0, x1 = torch.randn(2, 4, 3, 16, 16)
        >>> AdversarialLoss(NTXentLoss(), generator)(nn.Flatten(), x0, x1).views.shape
        torch.Size([4, 3, 16, 16])
    """

    @checked
    def __init__(
        self,
        normalize: dict[str, list[float]],
        *,
        budget: Fraction = 0.05,
        width: Count = 32,
        seed: int = 0,
        direction: Direction = "ascend",
    ) -> None:
        super().__init__()
        channels = len(normalize["mean"])
        self.budget, self.pixels, self.noise, self.direction = budget, Pixels(normalize), Noise(seed), direction
        self.down = nn.Sequential(
            _layer(channels, width, 9), _layer(width, 2 * width, 3, 2), _layer(2 * width, 4 * width, 3, 2)
        )
        sizes = [4 * width + block for block in range(4)]  # Each block adds a channel of noise.
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
        """Return views of `x`, (N, C, H, W), in the graph. `objective` is never evaluated."""
        pixels = self.pixels.from_normalized(x)
        hidden = self.down(pixels)
        for block in self.blocks:
            drawn = 0.5 * (1 + torch.erf(self.noise.like(hidden[:, :1].float()) / 2**0.5))  # uniform in [0, 1]
            hidden = torch.cat([hidden, drawn.to(hidden.dtype)], 1)
            hidden = hidden + block(hidden)
        delta = F.interpolate(self.up(hidden), x.shape[-2:]).float()
        delta = self.budget * delta / delta.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-8)
        return _directed(self.pixels.normalized((pixels + delta).clamp(0, 1)).to(x.dtype), self.direction)


class LearnedNoise(nn.Module):
    """Gaussian noise whose mean and standard deviation a network predicts for every value of the image.

    x' = x + μ(x) + σ(x) · ε with ε ~ N(0, 1), -eps < μ < eps and 0 < σ < eps. The noise is reparametrised, so that the
    gradient of the loss trains both. An untrained network has μ = 0 and σ = eps / 2.

    Source: Zhang et al., "Data Augmentation of Contrastive Learning is Estimating Positive-incentive Noise", ICML 2026
    (PiNDA). The bounds and the network, five convolutions, are ours.

    Args:
        channels: Channels of the images.
        eps: Bound of mean and standard deviation, in units of the normalised image.
        width: Number of channels of the first layer. The innermost layer has twice as many.
        seed: Seed of the noise.
        direction: Train the network to raise (`ascend`) or to lower (`descend`, as in the paper) the loss.

    Example:
        >>> generator = LearnedNoise(channels=3, eps=0.5, width=4)
        >>> x0, x1 = torch.randn(2, 4, 3, 16, 16)
        >>> AdversarialLoss(NTXentLoss(), generator)(nn.Flatten(), x0, x1).views.shape
        torch.Size([4, 3, 16, 16])
    """

    @checked
    def __init__(
        self,
        channels: Count = 3,
        *,
        eps: NonNegative = 0.5,
        width: Count = 32,
        seed: int = 0,
        direction: Direction = "descend",
    ) -> None:
        super().__init__()
        self.eps, self.noise, self.direction = eps, Noise(seed), direction
        last = nn.Conv2d(width, 2 * channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(
            _layer(channels, width, 3),
            _layer(width, 2 * width, 3, 2),
            _layer(2 * width, 2 * width, 3),
            nn.Upsample(scale_factor=2),
            _layer(2 * width, width, 3),
            last,
        )

    def forward(self, x: Tensor, objective: Objective) -> Tensor:
        """Return views of `x`, (N, C, H, W), in the graph. `objective` is never evaluated."""
        predicted = F.interpolate(self.layers(x), x.shape[-2:]).to(x.dtype)
        mean, deviation = predicted.chunk(2, 1)
        noise = mean.tanh() + deviation.sigmoid() * self.noise.like(x)
        return _directed(x + self.eps * noise, self.direction)


class LatentNetwork(nn.Module):
    """Network that predicts adversarial perturbations of a VAE's bottleneck, in place of a search (amortised IDAA).

    x' = R(x) + D(z + δ) with δ = eps · tanh(MLP(z, noise)), so -eps < δ < eps. See `LatentSpace` for R, D and z. The
    network is trained by the reversed gradient of the method's own backward pass, so no attack passes are needed.

    The network could collapse to one δ for all samples. `spread` measures this.

    Args:
        space: Bottleneck of a VAE.
        dim: Dimension of the bottleneck.
        eps: Radius of the L∞ ball, in bottleneck units.
        hidden_dim: Width of the two hidden layers.
        seed: Seed of the noise.

    Attributes:
        spread: Standard deviation of δ / eps over the samples of the last batch, averaged over the coordinates, 0 to
            about 1. It is 0 if all δ are equal.

    Example:
        >>> space = LatentSpace(VAE(image_size=16, bottleneck_dim=8, width=4))
        >>> generator = LatentNetwork(space, dim=8, eps=0.15)
        >>> x0, x1 = torch.randn(2, 4, 3, 16, 16)
        >>> AdversarialLoss(NTXentLoss(), generator)(nn.Flatten(), x0, x1).views.shape
        torch.Size([4, 3, 16, 16])
    """

    starts_at_input = False

    @checked
    def __init__(
        self, space: LatentSpace, dim: Count, *, eps: NonNegative = 0.15, hidden_dim: Count = 256, seed: int = 0
    ) -> None:
        super().__init__()
        self.space, self.eps, self.noise = space, eps, Noise(seed)
        first, second = nn.Linear(2 * dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(hidden_dim, dim))
        self._spread = [torch.zeros(())]  # In a list, because tensors in buffers and attributes are restored.

    @property
    def spread(self) -> Tensor:
        """Standard deviation of δ / eps over the samples of the last batch, see the class."""
        return self._spread[0]

    def forward(self, x: Tensor, objective: Objective) -> Tensor:
        """Return views of `x`, (N, C, H, W), in the graph. `objective` is never evaluated."""
        return reverse_gradient(self.search(x, objective)[1])

    def search(self, x: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """Return the perturbations (N, dim) and the views (N, C, H, W), in the graph."""
        start, render = self.space.at(x.detach())
        with torch.autocast(x.device.type, enabled=False):
            known = torch.cat([start, self.noise.like(start)], 1).to(next(self.layers.parameters()))
            delta = self.layers(known).tanh().to(start.dtype)
        self._spread[0] = delta.detach().std(0).mean()
        return self.eps * delta, render(start + self.eps * delta)


def _layer(inside: int, outside: int, kernel: int, stride: int = 1, *, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, padding_mode="reflect")
    return nn.Sequential(conv, nn.InstanceNorm2d(outside, affine=True), nn.ReLU() if act else nn.Identity())
