"""PGD: several projected gradient steps on the pixels."""

from __future__ import annotations

from typing import Any

from idaa_lightly import PGD as Ascent
from idaa_lightly import PixelSpace, ViewGenerator
from idaa_lightly.ascent import Norm
from idaa_lightly.errors import UsageError
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.plugin import GeneratorAugmentation


class PGD(GeneratorAugmentation):
    """Projected gradient descent (PGD): several steps on the pixels, by default from a random start.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, Sec. 2.1. Kim et
    al., "Adversarial Self-Supervised Contrastive Learning", NeurIPS 2020, use it as an augmentation.

    Args:
        eps: Radius of the ball, in units of the normalised image.
        steps: Number of steps.
        step_size: Length of a step, in units of the normalised image. None takes 2.5 · eps / steps.
        norm: Norm of the ball.
        random_start: Start from a random point of the ball. False starts from the image.

    Raises:
        UsageError: `mode` is "reused".
    """

    starts_at_input = False

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
            raise UsageError("mode is reused, which needs a single step from the input: choose clae, or mode exact")
        self.ascent = Ascent(eps, steps=steps, step_size=step_size, norm=norm, random_start=random_start)

    def generator(self) -> ViewGenerator:
        """Return PGD on the pixels."""
        return ViewGenerator(PixelSpace(), self.ascent)
