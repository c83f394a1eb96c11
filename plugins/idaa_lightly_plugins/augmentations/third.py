"""Control: a third ordinary view instead of an adversarial one."""

from __future__ import annotations

from typing import Literal

from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import nn

from idaa_lightly.options import NonNegative
from idaa_lightly.plugin import Augmentation, Method
from idaa_lightly.variants import ThirdViewLoss


class ThirdView(Augmentation):
    """Control: a third ordinary view of each image instead of the adversarial view.

    A gain that remains with this control comes from more views per step, not from adversarial ones. A step costs 1.5
    times that of the method alone.

    Args:
        weight: Weight of the loss between the first and the third view.
        branch: Branch of the BatchNorms that the third view passes through: the one of the other views, or the
            adversarial one.
    """

    def __init__(self, *, weight: NonNegative = 1.0, branch: Literal["clean", "adversarial"] = "clean") -> None:
        self.weight, self.dual_batchnorm = weight, branch == "adversarial"

    def transform(self, transform: MultiViewTransform) -> MultiViewTransform:
        """Return the method's transform with the second view drawn twice."""
        first, second, *others = transform.transforms
        return MultiViewTransform([first, second, second, *others])

    def loss(self, method: Method) -> nn.Module:
        """Return the loss of the method on the first two views plus that on the first and the third."""
        return ThirdViewLoss(method.loss, self.weight)
