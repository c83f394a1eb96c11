"""Viewmaker: a learned perturbation with a budget."""

from __future__ import annotations

from typing import Any

from torch import nn

from idaa_lightly import Viewmaker as Network
from idaa_lightly.options import Count, Fraction
from idaa_lightly.plugin import LearnedAugmentation, Method


class Viewmaker(LearnedAugmentation):
    """A small network with noise input perturbs the image within an L1 budget, and learns to raise the loss.

    Source: Tamkin et al., "Viewmaker Networks: Learning Views for Unsupervised Representation Learning", ICLR 2021.

    Args:
        budget: mean absolute perturbation of a pixel in [0, 1].
        width: channels of the network's first layer.
    """

    def __init__(self, *, budget: Fraction = 0.05, width: Count = 32, **options: Any) -> None:
        super().__init__(**options)
        self.budget, self.width = budget, width

    def generator(self, method: Method) -> nn.Module:
        """The network."""
        return Network(self.normalize, budget=self.budget, width=self.width)
