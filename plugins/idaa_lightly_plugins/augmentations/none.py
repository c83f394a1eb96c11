"""Baseline: the method without an adversarial view."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from idaa_lightly.outputs import detached
from idaa_lightly.plugin import Augmentation, Method


class CleanOutput(NamedTuple):
    """Output of `CleanLoss`.

    Attributes:
        total: Loss of the method, a scalar.
        clean: The same loss, detached, under the name that it has in `AdversarialOutput`.
        outputs: Detached outputs of the first two views.
    """

    total: Tensor
    clean: Tensor
    outputs: tuple[Any, ...]


class CleanLoss(nn.Module):
    """Loss of the method on all its views."""

    def forward(self, model: Method, *views: Tensor) -> CleanOutput:
        """Compute the loss of the method.

        Args:
            model: Method to train.
            views: Views of the same samples, (N, C, H, W) each. Local views may be smaller.
        """
        outputs = tuple(model(view) for view in views)
        loss = model.loss(*outputs)
        return CleanOutput(loss, loss.detach(), detached(outputs[:2]))


class NoAugmentation(Augmentation):
    """Baseline without an adversarial view: only the loss of the method."""

    dual_batchnorm = False

    def loss(self, method: Method) -> nn.Module:
        """Return the loss of the method."""
        return CleanLoss()
