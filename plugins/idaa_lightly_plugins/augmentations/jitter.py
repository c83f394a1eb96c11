"""The brightness, contrast, saturation and hue that raise the loss most, within bounds."""

from __future__ import annotations

from typing import Any

from idaa_lightly import FGSM, JitterSpace, ViewGenerator
from idaa_lightly.plugin import FitContext, GeneratorAugmentation


class Jitter(GeneratorAugmentation):
    """One step of ascent on brightness, contrast, saturation and hue: each at one of its bounds.

    Source: the colour jitter of Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning".

    Args:
        brightness: largest change of the factor, 0 to 0.99.
        contrast: largest change of the factor, 0 to 0.99.
        saturation: largest change of the factor, 0 to 0.99.
        hue: largest shift as a fraction of the colour circle, 0 to 0.5.
    """

    def __init__(
        self,
        *,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.bounds = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        JitterSpace({"mean": [0.0], "std": [1.0]}, **self.bounds)  # refuses bad bounds before anything is loaded

    def fit(self, context: FitContext) -> None:
        """Takes over how the views are normalised."""
        self.space = JitterSpace(context.normalize, **self.bounds)

    def generator(self) -> ViewGenerator:
        """FGSM within the bounds."""
        return ViewGenerator(self.space, FGSM(1.0))
