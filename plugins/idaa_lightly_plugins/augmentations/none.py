"""The method as it is: the baseline."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from idaa_lightly.outputs import detached
from idaa_lightly.plugin import Augmentation, Method


class CleanOutput(NamedTuple):
    """The method's own loss, a scalar, and the outputs of the first two views, detached."""

    total: Tensor
    outputs: tuple[Any, ...]


class CleanLoss(nn.Module):
    """The method's own loss on all its views."""

    def forward(self, model: Method, *views: Tensor) -> CleanOutput:
        """Views (N, C, H, W) each."""
        outputs = tuple(model(view) for view in views)
        return CleanOutput(model.loss(*outputs), detached(outputs[:2]))


class NoAugmentation(Augmentation):
    """No adversarial view: the method's own loss and nothing else."""

    dual_batchnorm = False

    def loss(self, method: Method) -> nn.Module:
        """The method's own loss."""
        return CleanLoss()
