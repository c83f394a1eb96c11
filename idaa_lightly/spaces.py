"""Spaces that an adversarial search perturbs, and how their points are rendered as images.

For images x of shape (N, C, H, W), `at(x)` returns the point where the search starts, of shape (N, ...), and a function
that renders such points as images. If `starts_at_input` is True, the rendered start equals x to floating-point
precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike
from typing import Annotated, Protocol

import torch
from annotated_types import Interval
from torch import Tensor, nn

from idaa_lightly.errors import UsageError, require_extra
from idaa_lightly.options import Fraction, checked
from idaa_lightly.vae import VAE

Render = Callable[[Tensor], Tensor]
Degrees = Annotated[float, Interval(ge=0, le=180)]
"""Largest angle, in degrees."""
Change = Annotated[float, Interval(ge=0, le=0.99)]
"""Largest relative change of a factor."""
Hue = Annotated[float, Interval(ge=0, le=0.5)]
"""Largest shift of the hue, as a fraction of the colour circle."""


class Space(Protocol):
    """Protocol of the spaces that a `ViewGenerator` searches."""

    starts_at_input: bool

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Return the start of the search, (N, ...), and the function that renders a point as images.

        Args:
            x: Images, (N, C, H, W).
        """


class Autoencoder(Protocol):
    """Protocol of the autoencoders that `LatentSpace` accepts. An autoencoder need not be an nn.Module."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (N, C, H, W) as posterior mean and log-variance, (N, bottleneck_dim) each."""

    def decode(self, z: Tensor) -> Tensor:
        """Decode bottlenecks (N, bottleneck_dim) to images (N, C, H, W)."""


class PixelSpace:
    """Pixels of the normalised image, as in CLAE (Ho & Vasconcelos, NeurIPS 2020, Sec. 3.2).

    Example:
        >>> start, render = PixelSpace().at(torch.zeros(2, 3, 8, 8))
        >>> render(start + 0.1).shape
        torch.Size([2, 3, 8, 8])
    """

    starts_at_input = True

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Return `x` and the identity function. A point is already an image."""
        return x, lambda point: point


class LatentSpace:
    """Bottleneck of a VAE, with the residual that carries the sample's identity added back.

    x' = R(x) + D(z + δ) with R(x) = x − D(E(x)) and z = E(x), the posterior mean. A VAE that is an nn.Module is frozen
    and set to eval mode, and is not registered as a submodule. It computes in the type of its own weights.

    Source: IDAA, Yang et al., ICML 2022, Sec. 3.3.

    Args:
        vae: VAE with the methods of `Autoencoder`, or a file that `VAE.save` wrote. An nn.Module is moved to the device
            of the images on each call.
        decompose: Add R(x). False gives the paper's ablation, x' = D(z + δ).

    Raises:
        FileFormatError: The file is missing or is not a VAE.
        UsageError: `vae` is neither an autoencoder nor a path.

    Example:
        >>> space = LatentSpace(VAE(image_size=16, bottleneck_dim=8, width=4))
        >>> x = torch.randn(2, 3, 16, 16)
        >>> space.at(x)[0].shape
        torch.Size([2, 8])
        >>> residual, reconstruction = space.decomposition(x)
        >>> torch.allclose(residual + reconstruction, x, atol=1e-5)
        True
    """

    def __init__(self, vae: Autoencoder | str | PathLike[str], *, decompose: bool = True) -> None:
        if isinstance(vae, str | PathLike):
            vae = VAE.load(vae)
        if not all(callable(getattr(vae, name, None)) for name in ("encode", "decode")):
            raise UsageError(
                f"vae is a {type(vae).__name__}, but expected one with encode(x) and decode(z), such as VAE, or the "
                "path of a VAE file"
            )
        self.vae = vae.requires_grad_(False) if isinstance(vae, nn.Module) else vae
        self.starts_at_input = decompose

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Return E(x) and a function that decodes a bottleneck, plus R(x) if `decompose` is True."""
        if isinstance(self.vae, nn.Module):
            self.vae.eval().requires_grad_(False).to(x.device)
        with torch.no_grad():
            mean, _ = self.vae.encode(x.to(self._type(x)))
            start = mean.to(torch.promote_types(mean.dtype, torch.float32))  # Half precision must not round z + δ.
            if not self.starts_at_input:
                return start, lambda point: self._decoded(point, x)
            residual = x - self._decoded(start, x)
        return start, lambda point: residual + self._decoded(point, x)

    def _type(self, x: Tensor) -> torch.dtype:
        """Return the type of the VAE's weights, or of the images if it has none."""
        weights = self.vae.parameters() if isinstance(self.vae, nn.Module) else iter(())
        return next(weights, x).dtype

    def _decoded(self, z: Tensor, x: Tensor) -> Tensor:
        """Decode a bottleneck, and convert it to the type of the images."""
        return self.vae.decode(z.to(self._type(x))).to(x.dtype)

    @torch.no_grad()
    def decomposition(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split images into identity R(x) and reconstruction G(x).

        Args:
            x: Images, (N, C, H, W).

        Returns:
            R(x) and G(x), (N, C, H, W) each. R(x) + G(x) = x.
        """
        start, _ = self.at(x)
        reconstruction = self._decoded(start, x)
        return x - reconstruction, reconstruction


class Pixels:
    """Conversion between normalised images and pixel values in [0, 1].

    Args:
        normalize: Keys `mean` and `std`, one value per channel, as in Lightly's transforms.
    """

    def __init__(self, normalize: dict[str, list[float]]) -> None:
        self.mean, self.std = (torch.tensor(normalize[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def from_normalized(self, x: Tensor) -> Tensor:
        """Convert normalised images (N, C, H, W) to pixels in [0, 1]."""
        return x * self.std.to(x) + self.mean.to(x)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (N, C, H, W) in [0, 1]."""
        return (pixels - self.mean.to(pixels)) / self.std.to(pixels)


class ColorSpace:
    """Mixing of the colour channels: C_i = Σ_j α_ij RGB_j with α ≥ 0 and rows that sum to 1, on images in [0, 1].

    A point of shape (N, 3, 2) holds two weights per channel: its mix with each of the other two channels. All weights
    are 0 at the start. A weight is halved when it is applied, and negative weights count as 0. Within the ball of
    radius eps, each row of α is a row of (1 − t) I + t Q with its own 0 ≤ t ≤ eps. The diagonal of Q is 0.

    Source: Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", colour mixing.

    Differs from the paper: points are weights, not logits of a softmax. The gradient of a softmax is 0 where nothing is
    mixed.

    Args:
        normalize: Keys `mean` and `std`, one value per channel of the images, as in Lightly's transforms.

    Example:
        >>> space = ColorSpace({"mean": [0.5] * 3, "std": [0.25] * 3})
        >>> start, render = space.at(torch.randn(2, 3, 8, 8))
        >>> start.shape, render(start + 0.1).shape
        (torch.Size([2, 3, 2]), torch.Size([2, 3, 8, 8]))
    """

    starts_at_input = True

    def __init__(self, normalize: dict[str, list[float]]) -> None:
        self.pixels = Pixels(normalize)

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Return zero weights and a function that mixes the colours of `x` by given weights."""
        pixels = self.pixels.from_normalized(x)
        steps = pixels[:, [[1, 2], [0, 2], [0, 1]]] - pixels.unsqueeze(2)  # to the other channels, (N, 3, 2, H, W)
        steps = steps / self.pixels.std.to(x).unsqueeze(1)

        def render(point: Tensor) -> Tensor:
            # The slope is 1/2 below 0 as well, so that a search can come back from negative weights.
            weights = (point - point.clamp(max=0).detach()) / 2
            return x + (weights[..., None, None] * steps).sum(2)

        return x.new_zeros(len(x), 3, 2), render


class AffineSpace:
    """Rotation, translation and scale.

    A point (N, 4) holds angle, horizontal shift, vertical shift and scale. It is in units of the bounds, so that an L∞
    ball of radius 1 fills them. Images are extended by reflection and interpolated bilinearly.

    Args:
        degrees: Largest angle, in degrees.
        translate: Largest shift, as a fraction of the image's width and height.
        scale: Largest relative change of the size.

    Raises:
        MissingExtraError: Kornia (extra `vision`) is not installed.

    Example:
        >>> generator = ViewGenerator(AffineSpace(degrees=10), FGSM(eps=1.0))
        >>> generator(torch.randn(2, 3, 8, 8), lambda images: images.square().sum()).shape
        torch.Size([2, 3, 8, 8])
    """

    starts_at_input = True

    @checked
    def __init__(self, *, degrees: Degrees = 15.0, translate: Fraction = 0.1, scale: Change = 0.1) -> None:
        require_extra("kornia", "vision", "AffineSpace")
        self.bounds = degrees, translate, scale

    def at(self, x: Tensor) -> tuple[Tensor, Render]:
        """Return zeros, (N, 4), and a function that warps `x` by given parameters."""
        from kornia.geometry.transform import get_affine_matrix2d, warp_affine

        height, width = x.shape[-2:]
        degrees, translate, scale = self.bounds
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # Half precision is too coarse for coordinates.
        center = wide.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(len(x), 2)
        reach = wide.new_tensor([translate * width, translate * height])

        def render(point: Tensor) -> Tensor:
            point = point.to(wide.dtype)
            size = (1 + scale * point[:, 3:]).expand(-1, 2)
            with torch.autocast(x.device.type, enabled=False):
                matrix = get_affine_matrix2d(point[:, 1:3] * reach, center, size, degrees * point[:, 0])
                return warp_affine(wide, matrix[:, :2], (height, width), padding_mode="reflection").to(x.dtype)

        return x.new_zeros(len(x), 4), render


class JitterSpace:
    """Brightness, contrast, saturation and hue, changed in this order on images in [0, 1].

    Images stay in [0, 1] after each change. A point (N, 4) holds the four changes as fractions of their bounds, so
    that an L∞ ball of radius 1 covers exactly the allowed changes.

    Args:
        normalize: Keys `mean` and `std`, one value per channel of the images, as in Lightly's transforms.
        brightness: Largest change of the brightness factor from 1.
        contrast: Largest change of the contrast factor from 1.
        saturation: Largest change of the saturation factor from 1.
        hue: Largest shift of the hue, as a fraction of the colour circle.

    Raises:
        MissingExtraError: Kornia (extra `vision`) is not installed.

    Example:
        >>> space = JitterSpace({"mean": [0.5] * 3, "std": [0.25] * 3}, brightness=0.2)
        >>> start, render = space.at(torch.randn(2, 3, 8, 8))
        >>> start.shape, render(start + 0.5).shape
        (torch.Size([2, 4]), torch.Size([2, 3, 8, 8]))
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
        """Return zeros, (N, 4), and a function that jitters `x` by given changes."""
        from kornia import enhance

        dtype = torch.promote_types(x.dtype, torch.float32)  # Half precision would round the images.
        pixels = self.pixels.from_normalized(x.to(dtype))

        def render(point: Tensor) -> Tensor:
            point = point.to(dtype)
            brightness, contrast, saturation, hue = (point * point.new_tensor(self.bounds)).unbind(1)
            image = enhance.adjust_brightness_accumulative(pixels, 1 + brightness)
            image = enhance.adjust_contrast_with_mean_subtraction(image, 1 + contrast)
            image = enhance.adjust_saturation_with_gray_subtraction(image, 1 + saturation)
            return self.pixels.normalized(enhance.adjust_hue(image, 2 * math.pi * hue)).to(x.dtype)

        return x.new_zeros(len(x), 4), render
