"""PiNDA: learned Gaussian noise that lowers the loss."""

from __future__ import annotations

from typing import Any

from torch import nn

from idaa_lightly import LearnedNoise
from idaa_lightly.learned import Direction
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.plugin import FitContext, LearnedAugmentation, Method


class PiNDA(LearnedAugmentation):
    """Positive-incentive noise (PiNDA): Gaussian noise with learned mean and variance, trained to lower the loss.

    The network that predicts the noise is trained together with the method, by the same backward pass. The direction
    `ascend` gives adversarial noise of the same form, and `lr = 0` fixed Gaussian noise, both for comparison.

    Source: Zhang et al., "Data Augmentation of Contrastive Learning is Estimating Positive-incentive Noise", ICML 2026,
    arXiv 2408.09929. This plugin follows the abstract and published summaries, not the full text or the authors' code:
    a generator learns a Gaussian distribution of noise, which is added to the data, by lowering the contrastive loss.

    Not known: the architecture of the generator, limits and initialisation of the noise, its learning rate, the weight
    of its term, and whether the noise is added to the original image or to an augmented view.

    Differs from the paper: the noise is bounded by `eps`. It is added to the first view, for a second term beside the
    loss of the two ordinary views, and passes through the adversarial branch of the BatchNorms.

    Args:
        eps: Bound of the mean and of the standard deviation of the noise, in units of the normalised image.
        width: Channels of the network's first layer.
        direction: descend trains the noise to lower the loss, ascend to raise it.
    """

    def __init__(
        self, *, eps: NonNegative = 0.5, width: Count = 32, direction: Direction = "descend", **options: Any
    ) -> None:
        super().__init__(direction=direction, **options)
        self.eps, self.width = eps, width

    def fit(self, context: FitContext) -> None:
        """Store the number of channels."""
        self.channels = context.channels

    def generator(self, method: Method) -> nn.Module:
        """Return the network that predicts the noise."""
        return LearnedNoise(self.channels, eps=self.eps, width=self.width, direction=self.direction)
