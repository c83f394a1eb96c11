"""Adversarial loss: a clean self-supervised loss plus the loss on an adversarial view of the anchor.

::

    views (x0, x1) ──► clean loss L(f(x0), f(x1))
          │
          └─► generator(x0, objective) ──► x' ──► adversarial loss L(f(x0), f_adv(x'))
    total = clean + weight · adversarial

f_adv is f with the adversarial branch of its BatchNorms selected (see `idaa_lightly.batchnorm`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from idaa_lightly.batchnorm import TrainingWatch, adversarial_batchnorm, require_dual_batchnorm
from idaa_lightly.errors import UsageError
from idaa_lightly.isolation import module_of, preserved_buffers, require_found
from idaa_lightly.options import NonNegative, checked
from idaa_lightly.outputs import detached, missing_attribute


class AdversarialOutput(NamedTuple):
    """Output of `AdversarialLoss`. Only `total` carries gradients. All other fields are detached.

    Attributes:
        total: Scalar to minimise, clean + weight · adversarial.
        clean: Scalar loss of the clean pair (x0, x1).
        adversarial: Scalar loss of the adversarial pair (x0, x').
        views: Adversarial views x', (N, C, H, W).
        outputs: Outputs of the model for x0, x1 and x'. In mode `half`, those for the first half of the batch.

    Example:
        >>> x0, x1 = torch.randn(2, 4, 3, 8, 8)
        >>> output = AdversarialLoss(NTXentLoss(), CLAE())(nn.Flatten(), x0, x1)
        >>> bool(output.total == output.clean + output.adversarial)
        True
        >>> [z.shape for z in output.outputs]
        [torch.Size([4, 192]), torch.Size([4, 192]), torch.Size([4, 192])]
    """

    total: Tensor
    clean: Tensor
    adversarial: Tensor
    views: Tensor
    outputs: tuple[Any, Any, Any]

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name)


class AdversarialLoss(nn.Module):
    """Clean self-supervised loss plus a weighted loss on adversarial views.

    It works under autocast. Samples whose attack overflows keep their clean view x0; see `ViewGenerator.fallbacks`.

    Source: Yang et al., ICML 2022, Sec. 3.3. The two terms and the split BatchNorm follow Ho & Vasconcelos, NeurIPS
    2020, Sec. 3.3.

    Args:
        criterion: Pair loss with Lightly's signature, `forward(out0, out1) -> scalar`, or a function of one output per
            view. An output is whatever the model returns: a tensor, or a tuple, list or dict of tensors. A tensor with
            one element counts as a scalar.
        generator: View generator such as `IDAA(vae)`, called as `generator(images, objective)`. If its attribute
            `starts_at_input` is True, it must evaluate the objective at `images` first.
        weight: Weight of the adversarial term, α in the paper.

    Raises:
        UsageError: `criterion` or `generator` is a class or no function, or `weight` is below 0.

    Example:
        >>> layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten()
        >>> model = dual_batchnorm(nn.Sequential(*layers))
        >>> criterion = AdversarialLoss(NTXentLoss(), CLAE(eps=0.03))
        >>> x0, x1 = torch.randn(2, 4, 3, 32, 32)
        >>> output = criterion(model, x0, x1)
        >>> output.total.backward()
        >>> output.views.shape
        torch.Size([4, 3, 32, 32])
    """

    _require = staticmethod(require_dual_batchnorm)

    @checked
    def __init__(
        self, criterion: Callable[..., Tensor], generator: Callable[..., Tensor], weight: NonNegative = 1.0
    ) -> None:
        super().__init__()
        for name, part in (("criterion", criterion), ("generator", generator)):
            if isinstance(part, type) or not callable(part) or getattr(type(part), "forward", 0) is nn.Module.forward:
                got = repr(part) if isinstance(part, str | type) else type(part).__name__
                raise UsageError(
                    f"{name} is {got}, but expected an object to call: write NTXentLoss() for the criterion, for "
                    "example, and IDAA(vae) for the generator"
                )
        self.criterion, self.generator, self.weight = criterion, generator, weight
        self.watch = TrainingWatch()

    def forward(self, model: Callable[[Tensor], Any], x0: Tensor, x1: Tensor, *others: Tensor) -> AdversarialOutput:
        """Compute both terms. The adversarial view is made from `x0` and replaces `x1` in the adversarial term.

        Args:
            model: Network that maps images (N, C, H, W) to an output: an nn.Module, a bound method of one, or a
                function that calls one.
            x0: First view of the samples, (N, C, H, W).
            x1: Second view of the samples, (N, C, H, W).
            others: Further views (multi-crop). The criterion receives their outputs after the first two.

        Raises:
            ModelError: The model has a BatchNorm that `dual_batchnorm` has not converted, or calls one that could not
                be found.
        """
        with self._checked(model):
            anchor, positive, *rest = [model(x) for x in (x0, x1, *others)]
        return self._terms(model, anchor, positive, rest, self._attack(model, x0, detached(rest)))

    @contextmanager
    def _checked(self, model: Callable[[Tensor], Any]) -> Iterator[None]:
        """Check that adversarial branches exist for all that is called, and warn once if they are not trained."""
        network = module_of(model)
        self._require(network)
        if self.weight and torch.is_grad_enabled():
            self.watch.step(network)
        with require_found(model):
            yield

    def _loss(self, *outputs: Any) -> Tensor:
        """Return the criterion as a scalar. Some of Lightly's losses, such as SwaVLoss, have the shape (1,)."""
        loss = self.criterion(*outputs)
        return loss.squeeze() if loss.numel() == 1 else loss

    def _terms(self, model: Any, anchor: Any, positive: Any, rest: list[Any], views: Tensor) -> AdversarialOutput:
        with self._adversarial(model):
            output = model(views)
            adversarial = self._loss(anchor, output, *rest)
        # The clean term comes last because it updates queues and centres. The adversarial term reads their old values.
        clean = self._loss(anchor, positive, *rest)
        total = clean + self.weight * adversarial
        return AdversarialOutput(total, *detached((clean, adversarial, views, (anchor, positive, output))))

    def _attack(self, model: Callable[[Tensor], Any], images: Tensor, rest: list[Any], anchor: Any = None) -> Tensor:
        """Search for views of `images` that raise the loss against a fixed anchor, by default f_adv(images).

        Under DDP, the gradient is that of one process with the whole batch, times the number of ranks: each rank
        differentiates the sum of their losses, not the mean. Ascents use only its sign or direction.
        """

        def objective(point: Tensor) -> Tensor:
            nonlocal anchor
            output = model(point)
            if anchor is None and getattr(self.generator, "starts_at_input", False):
                anchor = detached(output)  # `point` equals `images`, so one forward pass serves both sides.
            elif anchor is None:
                with torch.no_grad():
                    anchor = model(images)
            return self._loss(anchor, output, *rest)

        with self._adversarial(model), torch.random.fork_rng([images.device] if images.is_cuda else []):
            return self.generator(images, objective)

    @contextmanager
    def _adversarial(self, model: Callable[[Tensor], Any]) -> Iterator[None]:
        """Select the adversarial branch. Restore memory banks, queues and centres on exit."""
        with adversarial_batchnorm(module_of(model)), preserved_buffers(module_of(model), module_of(self.criterion)):
            yield
