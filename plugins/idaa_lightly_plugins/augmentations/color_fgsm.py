"""Adversarial mixing of the colour channels within a bound."""

from __future__ import annotations

from typing import Any

from idaa_lightly import FGSM, ColorSpace, ViewGenerator
from idaa_lightly.ascent import Norm
from idaa_lightly.options import Fraction
from idaa_lightly.plugin import FitContext, GeneratorAugmentation


class ColorFGSM(GeneratorAugmentation):
    """Adversarial mixing of the colour channels by one FGSM step.

    Source: Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", colour mixing. There the mixing is
    learned, here it is searched.

    Args:
        eps: Largest share of the other channels in a channel.
        norm: Norm of the ball.
    """

    def __init__(self, *, eps: Fraction = 0.5, norm: Norm = "linf", **options: Any) -> None:
        super().__init__(**options)
        self.ascent = FGSM(eps, norm)

    def fit(self, context: FitContext) -> None:
        """Store the normalisation of the views."""
        self.space = ColorSpace(context.normalize)

    def generator(self) -> ViewGenerator:
        """Return FGSM on the mixing weights."""
        return ViewGenerator(self.space, self.ascent)
