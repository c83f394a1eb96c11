"""A learned colour mixing."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from idaa_lightly import LearnedColor
from idaa_lightly.options import Fraction
from idaa_lightly.plugin import LearnedAugmentation, Method


class Color(LearnedAugmentation):
    """A linear layer on the backbone's representation mixes the colour channels, and learns to raise the loss.

    Source: Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", colour mixing.

    Args:
        eps: largest share of other channels in a channel.
    """

    def __init__(self, *, eps: Fraction = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.eps = eps

    def generator(self, method: Method) -> nn.Module:
        """The layer."""
        represent = partial(_represent, method)  # a copy of the loss then goes with the copy of the method
        return LearnedColor(represent, method.num_features, self.normalize, eps=self.eps)


def _represent(method: Method, images: Tensor) -> Tensor:
    features: Tensor = method.backbone(images).flatten(1)
    return features
