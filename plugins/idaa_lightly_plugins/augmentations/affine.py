"""Adversarial rotation, translation and scale within bounds."""

from __future__ import annotations

from typing import Any

from idaa_lightly import FGSM, AffineSpace, ViewGenerator
from idaa_lightly.options import Fraction
from idaa_lightly.plugin import GeneratorAugmentation
from idaa_lightly.spaces import Change, Degrees


class Affine(GeneratorAugmentation):
    """Adversarial rotation, translation and scale by one FGSM step, which moves each to one of its bounds.

    Source: Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", geometric attacks.

    Args:
        degrees: Largest angle, in degrees.
        translate: Largest shift, as a fraction of the image size.
        scale: Largest relative change of size.

    Raises:
        MissingExtraError: Kornia is not installed.
    """

    def __init__(
        self, *, degrees: Degrees = 15.0, translate: Fraction = 0.1, scale: Change = 0.1, **options: Any
    ) -> None:
        super().__init__(**options)
        self.space = AffineSpace(degrees=degrees, translate=translate, scale=scale)

    def generator(self) -> ViewGenerator:
        """Return FGSM within the bounds."""
        return ViewGenerator(self.space, FGSM(1.0))
