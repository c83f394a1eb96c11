"""Control: an unchanged view instead of an adversarial one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from idaa_lightly.errors import UsageError
from idaa_lightly.losses import AdversarialLoss
from idaa_lightly.options import NonNegative
from idaa_lightly.plugin import Augmentation, Method
from idaa_lightly.variants import Place, ReplacingLoss, UnperturbedLoss
from idaa_lightly.views import Objective


class Unperturbed(Augmentation):
    """Control: the first view, or with `place=replace` the second one, is used unchanged as the adversarial view.

    A gain that remains with this control comes from the second term of the loss, not from an adversarial view. Through
    the adversarial branch, a step costs 1.5 times that of the method alone. Through the clean branch, it costs no more:
    the output is that of the first view, and for a contrastive loss the second term is a uniformity term.

    Args:
        weight: Weight of the loss between the first view and its copy.
        branch: Branch of the BatchNorms that the copy passes through: the one of the other views, or the adversarial
            one.
        place: add takes the first view for a second term of the loss. replace passes the second view through the
            adversarial branch, and the loss has one term.

    Raises:
        UsageError: `place` is replace, but `branch` is clean or `weight` is not 1.
    """

    def __init__(
        self,
        *,
        weight: NonNegative = 1.0,
        branch: Literal["clean", "adversarial"] = "clean",
        place: Place = "add",
    ) -> None:
        self.weight, self.dual_batchnorm, self.place = weight, branch == "adversarial", place
        if place == "replace" and (branch == "clean" or weight != 1):
            raise UsageError(
                f"place is replace, with branch {branch} and weight {weight}: it needs branch adversarial and weight 1 "
                "(through the clean branch, it is the method alone)"
            )

    def loss(self, method: Method) -> nn.Module:
        """Return the loss of the method on both views plus that on the first view and its copy."""
        if self.place == "replace":
            return ReplacingLoss(method.loss, _unchanged)
        if self.dual_batchnorm:
            return AdversarialLoss(method.loss, _unchanged, self.weight)
        return UnperturbedLoss(method.loss, self.weight)


def _unchanged(images: Tensor, objective: Objective) -> Tensor:
    return images
