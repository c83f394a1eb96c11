"""A search generator: a space, and an ascent over it. It never sees the model, the criterion or a label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from idaa_lightly.ascent import FGSM, Ascent, RandomDirection
from idaa_lightly.spaces import Autoencoder, LatentSpace, PixelSpace, Space

Objective = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) to a scalar that is to be raised."""


class ViewGenerator(nn.Module):
    """Makes adversarial views by an ascent over a space.

    Args:
        space: what is perturbed, such as `LatentSpace(vae)`.
        ascent: how it is searched, such as `FGSM(eps=0.15)`.

    Shape:
        - Input: images (N, C, H, W), normalised as the model expects them, and an objective.
        - Output: images (N, C, H, W), detached. They are not clamped to any range.
    """

    def __init__(self, space: Space, ascent: Ascent) -> None:
        super().__init__()
        self.space, self.ascent = space, ascent

    @property
    def starts_at_input(self) -> bool:
        """Whether the objective's first question is about the input itself."""
        return self.space.starts_at_input and not self.ascent.random_start

    def control(self) -> ViewGenerator:
        """The control of a claim for the attack: the same space, a random direction of the same length, no search."""
        return ViewGenerator(self.space, RandomDirection(self.ascent.eps, self.ascent.norm))

    def forward(self, x: Tensor, objective: Objective) -> Tensor:
        """Returns views of `x` that raise `objective`."""
        return self.search(x, objective)[1]

    @torch.no_grad()
    def search(self, x: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """Returns the perturbations, in the space's own units and shape, and the views."""
        start, render = self.space.at(x.detach())
        delta = self.ascent(lambda delta: objective(render(start + delta)), start)
        return delta, render(start + delta)


def IDAA(vae: Autoencoder, eps: float = 0.15) -> ViewGenerator:
    """Identity-disentangled adversarial augmentation: FGSM on the bottleneck of a VAE, identity added back.

    Source: Yang et al., "Identity-Disentangled Adversarial Augmentation for Self-Supervised Learning", ICML 2022,
    Sec. 3.3; one FGSM step, ε = 0.15 by default (0.1 to 0.3 studied).

    Args:
        vae: anything with `encode(x) -> (mean, log-variance)` and `decode(z)`.
        eps: L∞ radius in units of the bottleneck, 0 or more.
    """
    return ViewGenerator(LatentSpace(vae), FGSM(eps))


def CLAE(eps: float = 0.03) -> ViewGenerator:
    """Contrastive learning with adversarial examples: FGSM on the pixels.

    Source: Ho & Vasconcelos, "Contrastive Learning with Adversarial Examples", NeurIPS 2020, Sec. 3.2.

    Args:
        eps: L∞ radius in units of the normalised image, 0 or more.
    """
    return ViewGenerator(PixelSpace(), FGSM(eps))
