"""Learned mixing of the colour channels."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from idaa_lightly import LearnedColor
from idaa_lightly.options import Fraction
from idaa_lightly.plugin import LearnedAugmentation, Method


class Color(LearnedAugmentation):
    """Learned colour mixing: a linear layer on the backbone's features mixes the channels to raise the loss.

    Source: Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", colour mixing.

    Args:
        eps: Largest share of the other channels in a channel.
    """

    def __init__(self, *, eps: Fraction = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.eps = eps

    def generator(self, method: Method) -> nn.Module:
        """Return the mixing layer."""
        represent = partial(_represent, method)  # not a lambda, so that a copied loss uses the copied method
        return LearnedColor(represent, method.num_features, self.normalize, eps=self.eps, direction=self.direction)


def _represent(method: Method, images: Tensor) -> Tensor:
    features: Tensor = method.backbone(images).flatten(1)
    return features
