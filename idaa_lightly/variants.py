"""Cheaper approximations of `AdversarialLoss`, and what is left of it without its parts. None is the default.

FLOPs of a step relative to the plain one, with a search of one gradient step and without the generator's own: exact
11 / 6, reused 10 / 6, half 8.5 / 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from idaa_lightly.errors import UsageError
from idaa_lightly.isolation import module_of, preserved_buffers
from idaa_lightly.losses import AdversarialLoss, AdversarialOutput
from idaa_lightly.outputs import detached, first_samples

Mode = Literal["exact", "reused", "half", "shared"]
"""`exact` is AdversarialLoss; `reused` searches through the clean branch, on the graph of the clean pass; `half`
attacks the first half of the batch; `shared` has no adversarial BatchNorm: the ablation."""


class ReusedGraphLoss(AdversarialLoss):
    """Searches on the graph of the clean pass, through the clean branch of the BatchNorms: one forward pass less.

    Approximate: x' is the adversary of f, not of f_adv. For a search of one step from the input, such as FGSM.
    """

    def forward(self, model: Callable[[Tensor], Any], x0: Tensor, x1: Tensor, *others: Tensor) -> AdversarialOutput:
        """Computes both terms; see `AdversarialLoss`."""
        self._require(module_of(model))
        rest = [model(x) for x in others]
        anchor: Any = None

        def objective(images: Tensor) -> Tensor:
            """A scalar with the gradient of the loss, whose own graph ends at the images."""
            nonlocal anchor
            if anchor is not None or not getattr(self.generator, "starts_at_input", False):
                raise UsageError(
                    "the clean graph answers one question, about the input itself: use FGSM, or mode exact"
                )
            leaf = images.detach().requires_grad_()
            anchor = model(leaf.view_as(leaf))  # the FLOP counter's hooks want no leaf
            with preserved_buffers(module_of(self.criterion)):
                loss = self.criterion(detached(anchor), anchor, *detached(rest))
            (slope,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            return (images * slope).sum()

        views = self.generator(x0, objective)
        anchor = model(x0) if anchor is None else anchor  # a random direction asks nothing
        return self._terms(model, anchor, model(x1), rest, views)


class HalfBatchLoss(AdversarialLoss):
    """Attacks the first half of each batch only; the adversarial term is the loss of that half."""

    def _attack(self, model: Callable[[Tensor], Any], x0: Tensor, rest: list[Any]) -> Tensor:
        count = -(-len(x0) // 2)
        return super()._attack(model, x0[:count], first_samples(rest, count))

    def _terms(self, model: Any, anchor: Any, positive: Any, rest: list[Any], views: Tensor) -> AdversarialOutput:
        first, second, others = (first_samples(part, len(views)) for part in (anchor, positive, rest))
        with self._adversarial(model):
            output = model(views)
            adversarial = self.criterion(first, output, *others)
        clean = self.criterion(anchor, positive, *rest)
        total = clean + self.weight * adversarial
        return AdversarialOutput(total, *detached((clean, adversarial, views, (first, second, output))))


class SharedBatchNormLoss(AdversarialLoss):
    """Without an adversarial branch: all views pass the same BatchNorms, whose statistics take in those of x', too."""

    @staticmethod
    def _require(network: nn.Module) -> None:
        """Any BatchNorm will do."""

    def _attack(self, model: Callable[[Tensor], Any], x0: Tensor, rest: list[Any]) -> Tensor:
        """Leaves no trace in running statistics either."""
        with preserved_buffers(module_of(model), norms=True):
            return super()._attack(model, x0, rest)


LOSSES: dict[Mode, type[AdversarialLoss]] = {
    "exact": AdversarialLoss, "reused": ReusedGraphLoss, "half": HalfBatchLoss, "shared": SharedBatchNormLoss,
}  # fmt: skip
