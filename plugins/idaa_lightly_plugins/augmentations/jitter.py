"""The brightness, contrast, saturation and hue that raise the loss most, within bounds."""

from __future__ import annotations

from typing import Any

from idaa_lightly import FGSM, JitterSpace, ViewGenerator
from idaa_lightly.plugin import FitContext, GeneratorAugmentation
from idaa_lightly.spaces import Change, Hue


class Jitter(GeneratorAugmentation):
    """One step of ascent on brightness, contrast, saturation and hue: each at one of its bounds.

    Source: the colour jitter of Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning".

    Args:
        brightness: largest change of the factor.
        contrast: largest change of the factor.
        saturation: largest change of the factor.
        hue: largest shift as a fraction of the colour circle.
    """

    def __init__(
        self,
        *,
        brightness: Change = 0.4,
        contrast: Change = 0.4,
        saturation: Change = 0.4,
        hue: Hue = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.bounds = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        JitterSpace({"mean": [0.0], "std": [1.0]}, **self.bounds)  # a missing kornia is reported before data are read

    def fit(self, context: FitContext) -> None:
        """Takes over how the views are normalised."""
        self.space = JitterSpace(context.normalize, **self.bounds)

    def generator(self) -> ViewGenerator:
        """FGSM within the bounds."""
        return ViewGenerator(self.space, FGSM(1.0))
