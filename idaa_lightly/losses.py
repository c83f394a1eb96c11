"""The whole idea in one place: a clean loss, an adversarial view of the anchor, and its loss.

    views (x0, x1) ──► clean loss L(f(x0), f(x1))
          │
          └─► generator(x0, objective) ──► x' ──► adversarial loss L(f(x0), f_adv(x'))
    total = clean + weight · adversarial

f_adv is f with the adversarial branch of its BatchNorms (see `idaa_lightly.batchnorm`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from idaa_lightly.batchnorm import adversarial_batchnorm, require_dual_batchnorm
from idaa_lightly.isolation import module_of, preserved_buffers
from idaa_lightly.outputs import detached


class AdversarialOutput(NamedTuple):
    """Scalars `total` = `clean` + weight · `adversarial`; detached, x' (N, C, H, W) and the outputs of x0, x1, x'."""

    total: Tensor
    clean: Tensor
    adversarial: Tensor
    views: Tensor
    outputs: tuple[Any, Any, Any]


class AdversarialLoss(nn.Module):
    """Adds a loss on adversarial views to any self-supervised loss.

    Source: Yang et al., ICML 2022, Sec. 3.3; the two terms and the split BatchNorm as in Ho & Vasconcelos, NeurIPS
    2020, Sec. 3.3.

    Args:
        criterion: Lightly's `forward(out0, out1) -> scalar`, or a function of one output per view. An output is what
            the model gives: a tensor, or a tuple, list or dict of them.
        generator: called as `generator(images, objective)`, such as `IDAA(vae)`. Its `starts_at_input` tells whether
            the first images that it asks the objective about are the given ones.
        weight: of the adversarial term, α in the paper.

    Raises:
        ModelError: the model has a BatchNorm that `dual_batchnorm` has not converted.
    """

    _require = staticmethod(require_dual_batchnorm)

    def __init__(self, criterion: Callable[..., Tensor], generator: Callable[..., Tensor], weight: float = 1.0) -> None:
        super().__init__()
        self.criterion, self.generator, self.weight = criterion, generator, weight

    def forward(self, model: Callable[[Tensor], Any], x0: Tensor, x1: Tensor, *others: Tensor) -> AdversarialOutput:
        """Computes both terms; the adversarial view is made from `x0` and takes the place of `x1`.

        Args:
            model: images (N, C, H, W) to an output: an nn.Module, its bound method, or a function that calls such.
            x0: first view of the samples, (N, C, H, W).
            x1: second view of the same samples.
            others: further views (multi-crop), whose outputs the criterion gets after the first two.
        """
        self._require(module_of(model))
        anchor, positive, *rest = [model(x) for x in (x0, x1, *others)]
        return self._terms(model, anchor, positive, rest, self._attack(model, x0, detached(rest)))

    def _terms(self, model: Any, anchor: Any, positive: Any, rest: list[Any], views: Tensor) -> AdversarialOutput:
        with self._adversarial(model):
            output = model(views)
            adversarial = self.criterion(anchor, output, *rest)
        clean = self.criterion(anchor, positive, *rest)  # last: only the clean pair may enter queues and centres
        total = clean + self.weight * adversarial
        return AdversarialOutput(total, *detached((clean, adversarial, views, (anchor, positive, output))))

    def _attack(self, model: Callable[[Tensor], Any], x0: Tensor, rest: list[Any]) -> Tensor:
        """Searches x' against the anchor f_adv(x0), which is held fixed."""
        anchor = None

        def objective(images: Tensor) -> Tensor:
            nonlocal anchor
            output = model(images)
            if anchor is None and getattr(self.generator, "starts_at_input", False):
                anchor = detached(output)  # images is x0: one forward pass serves both sides
            elif anchor is None:
                with torch.no_grad():
                    anchor = model(x0)
            return self.criterion(anchor, output, *rest)

        with self._adversarial(model), torch.random.fork_rng([x0.device] if x0.is_cuda else []):
            return self.generator(x0, objective)

    @contextmanager
    def _adversarial(self, model: Callable[[Tensor], Any]) -> Iterator[None]:
        """Selects the adversarial branch, and keeps memory banks, queues and centres as they are."""
        with adversarial_batchnorm(module_of(model)), preserved_buffers(module_of(model), module_of(self.criterion)):
            yield
