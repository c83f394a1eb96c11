"""CLAE: one FGSM step on the pixels."""

from __future__ import annotations

from typing import Any

from idaa_lightly import FGSM, PixelSpace, ViewGenerator
from idaa_lightly.options import NonNegative
from idaa_lightly.plugin import GeneratorAugmentation


class CLAE(GeneratorAugmentation):
    """Contrastive learning with adversarial examples (CLAE): one FGSM step on the pixels.

    Source: Ho & Vasconcelos, "Contrastive Learning with Adversarial Examples", NeurIPS 2020, Sec. 3.2.

    Args:
        eps: Radius of the L∞ ball, in units of the normalised image.
    """

    def __init__(self, *, eps: NonNegative = 0.03, **options: Any) -> None:
        super().__init__(**options)
        self.ascent = FGSM(eps)

    def generator(self) -> ViewGenerator:
        """Return FGSM on the pixels."""
        return ViewGenerator(PixelSpace(), self.ascent)
