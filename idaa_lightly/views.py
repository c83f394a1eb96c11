"""View generators that search a space by an ascent.

A generator receives images and an objective. It never sees the model, the criterion or a label.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike

import torch
from torch import Tensor, nn

from idaa_lightly.ascent import FGSM, Ascent, RandomDirection, finite
from idaa_lightly.spaces import Autoencoder, LatentSpace, PixelSpace, Space

Objective = Callable[[Tensor], Tensor]
"""Function that maps images (N, C, H, W) to the scalar that a search raises."""


class ViewGenerator(nn.Module):
    """Generator of adversarial views: an ascent over a space.

    If the perturbation or the view of a sample is not finite, its view is the image itself, and `fallbacks` counts it.
    If the space starts at the input, a perturbation of exactly 0 also gives the image itself, to the bit.

    Args:
        space: Space that is perturbed, such as `LatentSpace(vae)`.
        ascent: Search within that space, such as `FGSM(eps=0.15)`.

    Shape:
        - Input: Images (N, C, H, W), normalised as the model expects them, and an objective.
        - Output: Images (N, C, H, W), detached. They are not clamped to any range.

    Example:
        >>> generator = ViewGenerator(PixelSpace(), FGSM(eps=0.1))
        >>> generator(torch.zeros(2, 3, 8, 8), lambda images: images.sum()).unique()
        tensor([0.1000])
        >>> generator.control()
        ViewGenerator(PixelSpace(), RandomDirection(eps=0.1, norm='linf'))
    """

    def __init__(self, space: Space, ascent: Ascent) -> None:
        super().__init__()
        self.space, self.ascent = space, ascent
        self._fallbacks: list[Tensor] = []  # No buffer, because buffers are restored after an attack.

    @property
    def fallbacks(self) -> int:
        """Number of views since construction that are the image itself because a value was infinite or NaN.

        The number is kept on the device of the images. Reading it waits for the device.
        """
        return int(sum(self._fallbacks))

    def __repr__(self) -> str:
        """Return the space and the search, with their settings."""
        return f"{type(self).__name__}({_described(self.space)}, {_described(self.ascent)})"

    @property
    def starts_at_input(self) -> bool:
        """Return True if the objective is first evaluated at the input itself."""
        return getattr(self.space, "starts_at_input", False) and not self.ascent.random_start

    def control(self) -> ViewGenerator:
        """Return a control generator that takes a random direction of equal length in this space, without a search."""
        return ViewGenerator(self.space, RandomDirection(self.ascent.eps, self.ascent.norm))

    def forward(self, x: Tensor, objective: Objective) -> Tensor:
        """Return views of `x` that raise `objective`.

        Args:
            x: Images, (N, C, H, W).
            objective: Function that maps images to the scalar to raise.
        """
        return self.search(x, objective)[1]

    @torch.no_grad()
    def search(self, x: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """Return the perturbations and the views.

        Args:
            x: Images, (N, C, H, W).
            objective: Function that maps images to the scalar to raise.

        Returns:
            The perturbations, in the units and shape of the space, and the views, (N, C, H, W). The perturbation of
            a sample that fell back is 0.
        """
        x = x.detach()
        start, render = self.space.at(x)
        delta = self.ascent(lambda delta: objective(render(start + delta)), start)
        usable = finite(delta)
        delta = delta.where(usable, 0)
        views = render(start + delta)
        lost = ~(usable.flatten() & finite(views).flatten())
        self._fallbacks = [sum(self._fallbacks, lost.sum())]
        clean = lost | ~delta.flatten(1).any(1) if getattr(self.space, "starts_at_input", False) else lost
        return delta, torch.where(clean.view(-1, *[1] * (x.ndim - 1)), x, views)


def _described(part: object) -> str:
    """Return the class of a space, a search or a VAE, with its settings."""
    config = getattr(part, "config", None)
    settings = {
        name: value
        for name, value in (config if isinstance(config, dict) else vars(part)).items()
        if isinstance(value, int | float | str | tuple) and name != "training"
    }
    inside = [_described(part.vae)] if hasattr(part, "vae") else []
    return f"{type(part).__name__}({', '.join(inside + [f'{name}={value!r}' for name, value in settings.items()])})"


def IDAA(vae: Autoencoder | str | PathLike[str], eps: float = 0.15) -> ViewGenerator:
    """Identity-disentangled adversarial augmentation: FGSM on the bottleneck of a VAE, plus the identity residual.

    Source: Yang et al., "Identity-Disentangled Adversarial Augmentation for Self-Supervised Learning", ICML 2022,
    Sec. 3.3. The paper takes one FGSM step and studies ε from 0.1 to 0.3. The default here is 0.15.

    Args:
        vae: Autoencoder with `encode(x) -> (mean, log-variance)` and `decode(z)`, or a file that `VAE.save` wrote.
        eps: Radius of the L∞ ball, in bottleneck units. Must be >= 0.

    Raises:
        FileFormatError: The file is missing or is not a VAE.
        UsageError: `vae` is neither an autoencoder nor a path.

    Example:
        >>> generator = IDAA(VAE(image_size=16, bottleneck_dim=8, width=4), eps=0.15)
        >>> x = torch.randn(2, 3, 16, 16)
        >>> delta, views = generator.search(x, lambda images: images.square().sum())
        >>> delta.shape, views.shape
        (torch.Size([2, 8]), torch.Size([2, 3, 16, 16]))
    """
    return ViewGenerator(LatentSpace(vae), FGSM(eps))


def CLAE(eps: float = 0.03) -> ViewGenerator:
    """Contrastive learning with adversarial examples: FGSM on the pixels.

    Source: Ho & Vasconcelos, "Contrastive Learning with Adversarial Examples", NeurIPS 2020, Sec. 3.2.

    Args:
        eps: Radius of the L∞ ball, in units of the normalised image. Must be >= 0.

    Example:
        >>> CLAE(eps=0.03)(torch.zeros(2, 3, 8, 8), lambda images: images.sum()).unique()
        tensor([0.0300])
    """
    return ViewGenerator(PixelSpace(), FGSM(eps))
