"""Viewmaker: a learned perturbation of limited size."""

from __future__ import annotations

from typing import Any

from torch import nn

from idaa_lightly import Viewmaker as Network
from idaa_lightly.options import Count, Fraction
from idaa_lightly.plugin import LearnedAugmentation, Method


class Viewmaker(LearnedAugmentation):
    """Learned perturbation: a small network with noise input perturbs images within an L1 budget to raise the loss.

    Source: Tamkin et al., "Viewmaker Networks: Learning Views for Unsupervised Representation Learning", ICLR 2021.

    Args:
        budget: Mean absolute perturbation of a pixel, for pixels in [0, 1].
        width: Channels of the network's first layer.
    """

    def __init__(self, *, budget: Fraction = 0.05, width: Count = 32, **options: Any) -> None:
        super().__init__(**options)
        self.budget, self.width = budget, width

    def generator(self, method: Method) -> nn.Module:
        """Return the perturbation network."""
        return Network(self.normalize, budget=self.budget, width=self.width, direction=self.direction)
