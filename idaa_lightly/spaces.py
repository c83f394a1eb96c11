"""What is perturbed, and how a point of it becomes an image.

A space answers `at(x)` for images x of shape (N, C, H, W) with the point where the search starts, of shape (N, ...),
and a function that renders such points as images. Where `starts_at_input` is true, the start is rendered as x
itself, to floating-point precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

Render = Callable[[Tensor], Tensor]


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
