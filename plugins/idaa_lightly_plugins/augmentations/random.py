"""The control: a perturbation of the same strength in a random direction."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from idaa_lightly import PixelSpace, RandomDirection, ViewGenerator
from idaa_lightly.ascent import Norm
from idaa_lightly.plugin import FitContext
from idaa_lightly_plugins.augmentations.idaa import IDAA


class Random(IDAA):
    """A random direction of IDAA's or CLAE's strength: what remains of a gain when the attack is taken away.

    Of IDAA's options `steps` means nothing here.

    Args:
        space: "latent" perturbs as IDAA does (with its VAE, and its options), "pixels" as CLAE does.
        eps: length in units of the space; IDAA's or CLAE's default where it is None.
        norm: "linf" takes random signs, "l2" a random point of the sphere.
    """

    def __init__(
        self,
        *,
        space: Literal["latent", "pixels"] = "latent",
        eps: float | None = None,
        norm: Norm = "linf",
        **options: Any,
    ) -> None:
        radius = {"latent": 0.15, "pixels": 0.03}[space] if eps is None else eps
        super().__init__(eps=radius, norm=norm, **options)
        self.in_pixels = space == "pixels"
        self.relative_cost = 1.6
        self.direction = RandomDirection(radius, norm)

    def fit(self, context: FitContext) -> None:
        """Fits IDAA's VAE where its bottleneck is perturbed; the directions are of the run's seed."""
        self.direction.noise.seed = context.seed
        if not self.in_pixels:
            super().fit(context)

    def fit_seconds(self, context: FitContext) -> float:
        """None for pixels."""
        return 0.0 if self.in_pixels else super().fit_seconds(context)

    def generator(self) -> ViewGenerator:
        """A random direction."""
        return ViewGenerator(PixelSpace() if self.in_pixels else self.space, self.direction)

    def panels(self, images: Tensor) -> dict[str, Tensor]:
        """As IDAA's, for the bottleneck."""
        return {} if self.in_pixels else super().panels(images)
