"""What is perturbed, and how a point of it becomes an image.

A space answers `at(x)` for images x of shape (N, C, H, W) with the point where the search starts, of shape (N, ...),
and a function that renders such points as images. Where `starts_at_input` is true, the start is rendered as x
itself, to floating-point precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Protocol

import torch
from annotated_types import Interval
from torch import Tensor, nn

from idaa_lightly.errors import require_extra
from idaa_lightly.options import Fraction, checked

Render = Callable[[Tensor], Tensor]
Degrees = Annotated[float, Interval(ge=0, le=180)]
"""An angle."""
Change = Annotated[float, Interval(ge=0, le=0.99)]
"""The largest relative change of a factor."""
Hue = Annotated[float, Interval(ge=0, le=0.5)]
"""The largest shift of the hue, as a fraction of the colour circle."""


class Space(Protocol):
    """What a ViewGenerator asks of a space."""

    starts_at_input: bool

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Returns the start of the search and the function that renders a point."""


class Autoencoder(Protocol):
    """What `LatentSpace` asks of a VAE. It need not be an nn.Module."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) to the posterior's mean and log-variance, (N, bottleneck_dim) each."""

    def decode(self, z: Tensor) -> Tensor:
        """Bottlenecks (N, bottleneck_dim) to images (N, C, H, W)."""


class PixelSpace:
    """The pixels of the normalised image. CLAE: Ho & Vasconcelos, NeurIPS 2020, Sec. 3.2."""

    starts_at_input = True

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Starts at `x`; a point is an image already."""
        return x, lambda point: point


class LatentSpace:
    """The bottleneck of a VAE, with the residual that carries the sample's identity added back.

    x' = R(x) + D(z + δ) with R(x) = x − D(E(x)) and z = E(x), the posterior mean. IDAA: Yang et al., ICML 2022,
    Sec. 3.3. The VAE is held in eval mode, without gradients of its own, and is no submodule of anything.

    Args:
        vae: see `Autoencoder`; an nn.Module is moved to the images' device when it is used.
        decompose: False leaves out R(x), so that x' = D(z + δ): the paper's ablation.
    """

    def __init__(self, vae: Autoencoder, *, decompose: bool = True) -> None:
        self.vae = vae.requires_grad_(False) if isinstance(vae, nn.Module) else vae
        self.starts_at_input = decompose

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Starts at E(x)."""
        if isinstance(self.vae, nn.Module):
            self.vae.eval().to(x.device)
        with torch.no_grad():
            mean, _ = self.vae.encode(x)
            start = mean.to(torch.promote_types(mean.dtype, torch.float32))  # autocast must not round z + δ
            if not self.starts_at_input:
                return start, self.vae.decode
            residual = x - self.vae.decode(start)
        return start, lambda point: residual + self.vae.decode(point)

    @torch.no_grad()
    def decomposition(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Splits images into identity R(x) and reconstruction G(x), (N, C, H, W) each; R(x) + G(x) = x."""
        start, _ = self.at(x)
        reconstruction = self.vae.decode(start)
        return x - reconstruction, reconstruction


class Pixels:
    """Takes normalised images back to [0, 1], and the other way round.

    Args:
        normalize: `mean` and `std` per channel, as for Lightly's transforms.
    """

    def __init__(self, normalize: dict[str, list[float]]) -> None:
        self.mean, self.std = (torch.tensor(normalize[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def from_normalized(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to [0, 1]."""
        return x * self.std.to(x) + self.mean.to(x)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to normalised ones."""
        return (pixels - self.mean.to(pixels)) / self.std.to(pixels)


class ColorSpace:
    """Mixing of the colour channels: C_i = Σ_j α_ij RGB_j with α ≥ 0 and rows that sum to 1, on images in [0, 1].

    A point holds the six weights that take from one channel to another, shape (N, 3, 2), 0 at the start; they count
    half, and not below 0. Within the ball of radius eps, α = (1 − t) I + t Q with 0 ≤ t ≤ eps in each row, Q without a
    diagonal.

    Source: Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", colour mixing.

    Differs from it: weights instead of the logits of a softmax, whose gradient is 0 where nothing is mixed.

    Args:
        normalize: `mean` and `std` per channel of the images, as for Lightly's transforms.
    """

    starts_at_input = True

    def __init__(self, normalize: dict[str, list[float]]) -> None:
        self.pixels = Pixels(normalize)

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Starts at the image's own colours."""
        pixels = self.pixels.from_normalized(x)
        steps = pixels[:, [[1, 2], [0, 2], [0, 1]]] - pixels.unsqueeze(2)  # (N, 3, 2, H, W): to the other channels
        steps = steps / self.pixels.std.to(x).unsqueeze(1)

        def render(point: Tensor) -> Tensor:
            weights = (point - point.clamp(max=0).detach()) / 2  # of slope 1/2 below 0, too: the way back
            return x + (weights[..., None, None] * steps).sum(2)

        return x.new_zeros(len(x), 3, 2), render


class AffineSpace:
    """Rotation, translation and scale; a point (N, 4) is in units of the bounds, so that a ball of radius 1 fills them.

    The image is continued by reflection, and interpolated bilinearly.

    Args:
        degrees: largest angle.
        translate: largest shift as a fraction of the image's size, horizontally and vertically.
        scale: largest change of the size, as a fraction, below 1.
    """

    starts_at_input = True

    @checked
    def __init__(self, *, degrees: Degrees = 15.0, translate: Fraction = 0.1, scale: Change = 0.1) -> None:
        require_extra("kornia", "vision", "AffineSpace")
        self.bounds = degrees, translate, scale

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Starts at the image as it is."""
        from kornia.geometry.transform import get_affine_matrix2d, warp_affine

        height, width = x.shape[-2:]
        degrees, translate, scale = self.bounds
        center = x.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(len(x), 2)
        reach = x.new_tensor([translate * width, translate * height])

        def render(point: Tensor) -> Tensor:
            size = (1 + scale * point[:, 3:]).expand(-1, 2)
            with torch.autocast(x.device.type, enabled=False):  # half precision is too coarse for coordinates
                matrix = get_affine_matrix2d(point[:, 1:3] * reach, center, size, degrees * point[:, 0])
                return warp_affine(x, matrix[:, :2], (height, width), padding_mode="reflection")

        return x.new_zeros(len(x), 4), render


class JitterSpace:
    """Brightness, contrast, saturation and hue, in this order, on images in [0, 1], clamped to it after each.

    A point (N, 4) is in units of the bounds, so that a ball of radius 1 fills them.

    Args:
        normalize: `mean` and `std` per channel of the images, as for Lightly's transforms.
        brightness: largest change of the factor, below 1.
        contrast: largest change of the factor, below 1.
        saturation: largest change of the factor, below 1.
        hue: largest shift as a fraction of the colour circle, up to 0.5.
    """

    starts_at_input = True

    @checked
    def __init__(
        self,
        normalize: dict[str, list[float]],
        *,
        brightness: Change = 0.4,
        contrast: Change = 0.4,
        saturation: Change = 0.4,
        hue: Hue = 0.1,
    ) -> None:
        require_extra("kornia", "vision", "JitterSpace")
        self.bounds = brightness, contrast, saturation, hue
        self.pixels = Pixels(normalize)

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Starts at the image as it is."""
        from kornia import enhance

        pixels = self.pixels.from_normalized(x)

        def render(point: Tensor) -> Tensor:
            brightness, contrast, saturation, hue = (point * point.new_tensor(self.bounds)).unbind(1)
            image = enhance.adjust_brightness_accumulative(pixels, 1 + brightness)
            image = enhance.adjust_contrast_with_mean_subtraction(image, 1 + contrast)
            image = enhance.adjust_saturation_with_gray_subtraction(image, 1 + saturation)
            return self.pixels.normalized(enhance.adjust_hue(image, 2 * math.pi * hue))

        return x.new_zeros(len(x), 4), render
