"""Adversarial brightness, contrast, saturation and hue within bounds."""

from __future__ import annotations

from typing import Any

from idaa_lightly import FGSM, JitterSpace, ViewGenerator
from idaa_lightly.plugin import FitContext, GeneratorAugmentation
from idaa_lightly.spaces import Change, Hue


class Jitter(GeneratorAugmentation):
    """Adversarial colour jitter by one FGSM step.

    The step moves brightness, contrast, saturation and hue each to one of its bounds.

    Source: Lubana & Aldeeb, "Adversarial Augmentations for Contrastive Learning", colour jitter.

    Args:
        brightness: Largest change of the brightness factor from 1.
        contrast: Largest change of the contrast factor from 1.
        saturation: Largest change of the saturation factor from 1.
        hue: Largest shift, as a fraction of the colour circle.
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
        """Store the normalisation of the views.

        Raises:
            MissingExtraError: Kornia is not installed.
        """
        self.space = JitterSpace(context.normalize, **self.bounds)

    def generator(self) -> ViewGenerator:
        """Return FGSM within the bounds."""
        return ViewGenerator(self.space, FGSM(1.0))
