"""Control: the first view, unchanged, instead of an adversarial one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from idaa_lightly.losses import AdversarialLoss
from idaa_lightly.options import NonNegative
from idaa_lightly.plugin import Augmentation, Method
from idaa_lightly.variants import UnperturbedLoss
from idaa_lightly.views import Objective


class Unperturbed(Augmentation):
    """Control: the first view, unchanged, takes the place of the adversarial view.

    A gain that remains with this control comes from the second term of the loss, not from an adversarial view. Through
    the adversarial branch, a step costs 1.5 times that of the method alone. Through the clean branch, it costs no more:
    the output is that of the first view, and for a contrastive loss the second term is a uniformity term.

    Args:
        weight: Weight of the loss between the first view and its copy.
        branch: Branch of the BatchNorms that the copy passes through: the one of the other views, or the adversarial
            one.
    """

    def __init__(self, *, weight: NonNegative = 1.0, branch: Literal["clean", "adversarial"] = "clean") -> None:
        self.weight, self.dual_batchnorm = weight, branch == "adversarial"

    def loss(self, method: Method) -> nn.Module:
        """Return the loss of the method on both views plus that on the first view and its copy."""
        if self.dual_batchnorm:
            return AdversarialLoss(method.loss, _unchanged, self.weight)
        return UnperturbedLoss(method.loss, self.weight)


def _unchanged(images: Tensor, objective: Objective) -> Tensor:
    return images
