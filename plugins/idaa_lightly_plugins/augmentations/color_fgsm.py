"""The colour mixing that raises the loss most, within a bound."""

from __future__ import annotations

from typing import Any

from idaa_lightly import FGSM, ColorSpace, ViewGenerator
from idaa_lightly.ascent import Norm
from idaa_lightly.options import Fraction
from idaa_lightly.plugin import FitContext, GeneratorAugmentation


class ColorFGSM(GeneratorAugmentation):
    """One step of ascent on a mixing of the colour channels.

    Source: the colour mixing of Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", searched
    instead of learned.

    Args:
        eps: largest share of other channels in a channel.
        norm: of the ball.
    """

    def __init__(self, *, eps: Fraction = 0.5, norm: Norm = "linf", **options: Any) -> None:
        super().__init__(**options)
        self.ascent = FGSM(eps, norm)

    def fit(self, context: FitContext) -> None:
        """Takes over how the views are normalised."""
        self.space = ColorSpace(context.normalize)

    def generator(self) -> ViewGenerator:
        """FGSM on the mixing."""
        return ViewGenerator(self.space, self.ascent)
