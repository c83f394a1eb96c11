"""PGD: several projected steps on the pixels."""

from __future__ import annotations

from typing import Any

from idaa_lightly import PGD as Ascent
from idaa_lightly import PixelSpace, ViewGenerator
from idaa_lightly.ascent import Norm
from idaa_lightly.errors import UsageError
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.plugin import GeneratorAugmentation


class PGD(GeneratorAugmentation):
    """Several projected gradient steps on the pixels, from a random start.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, Sec. 2.1; as an
    augmentation of contrastive learning: Kim et al., "Adversarial Self-Supervised Contrastive Learning", NeurIPS 2020.

    Args:
        eps: radius of the ball in units of the normalised image.
        steps: number of steps.
        step_size: length of a step; 2.5 · eps / steps where it is None.
        norm: of the ball.
        random_start: start from a random point of the ball, not from the image.
    """

    def __init__(
        self,
        *,
        eps: NonNegative = 0.03,
        steps: Count = 5,
        step_size: NonNegative | None = None,
        norm: Norm = "linf",
        random_start: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.mode == "reused":
            raise UsageError("mode is reused, which serves a search of one step from the input: choose clae, or exact")
        self.ascent = Ascent(eps, steps=steps, step_size=step_size, norm=norm, random_start=random_start)

    def generator(self) -> ViewGenerator:
        """PGD on pixels."""
        return ViewGenerator(PixelSpace(), self.ascent)
