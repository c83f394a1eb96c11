"""The rotation, translation and scale that raise the loss most, within bounds."""

from __future__ import annotations

from typing import Any

from idaa_lightly import FGSM, AffineSpace, ViewGenerator
from idaa_lightly.options import Fraction
from idaa_lightly.plugin import GeneratorAugmentation
from idaa_lightly.spaces import Change, Degrees


class Affine(GeneratorAugmentation):
    """One step of ascent on rotation, translation and scale: each at one of its bounds.

    Source: the geometric attacks of Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning".

    Args:
        degrees: largest angle.
        translate: largest shift as a fraction of the image's size.
        scale: largest change of the size, as a fraction.
    """

    def __init__(
        self, *, degrees: Degrees = 15.0, translate: Fraction = 0.1, scale: Change = 0.1, **options: Any
    ) -> None:
        super().__init__(**options)
        self.space = AffineSpace(degrees=degrees, translate=translate, scale=scale)

    def generator(self) -> ViewGenerator:
        """FGSM within the bounds."""
        return ViewGenerator(self.space, FGSM(1.0))
