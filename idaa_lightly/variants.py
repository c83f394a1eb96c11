"""Variants of `AdversarialLoss`: cheaper approximations, another place of the view, and controls.

FLOPs of a training step, relative to a step without an attack: exact 11 / 6, reused 10 / 6, half 8.5 / 6. These figures
are for a search of one gradient step, without the generator's own FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from idaa_lightly.errors import UsageError
from idaa_lightly.isolation import module_of, preserved_buffers, require_found
from idaa_lightly.losses import AdversarialLoss, AdversarialOutput
from idaa_lightly.outputs import detached, first_samples, missing_attribute

Mode = Literal["exact", "reused", "half", "shared"]
"""Variant of the adversarial loss.

`exact` is `AdversarialLoss`, the default. `reused` searches on the graph of the clean pass, through the clean BatchNorm
branch. `half` attacks the first half of the batch. `shared` is the ablation without an adversarial BatchNorm.
"""


class ReusedGraphLoss(AdversarialLoss):
    """Adversarial loss that searches on the graph of the clean pass, which saves one forward pass.

    The search uses the clean branch of the BatchNorms. It is therefore approximate: x' attacks f, not f_adv. The
    search must take a single step from the input, as FGSM does.

    Example:
        >>> x0, x1 = torch.randn(2, 4, 3, 8, 8)
        >>> output = ReusedGraphLoss(NTXentLoss(), CLAE(eps=0.03))(nn.Flatten(), x0, x1)
        >>> output.views.shape
        torch.Size([4, 3, 8, 8])
    """

    def forward(self, model: Callable[[Tensor], Any], x0: Tensor, x1: Tensor, *others: Tensor) -> AdversarialOutput:
        """Compute both terms. See `AdversarialLoss` for the arguments.

        Raises:
            ModelError: See `AdversarialLoss.forward`.
            UsageError: The generator evaluates the objective twice, or does not start at the input.
        """
        with self._checked(model):
            rest = [model(x) for x in others]
        anchor: Any = None

        def objective(images: Tensor) -> Tensor:
            """Return a scalar that has the gradient of the loss, but whose graph ends at `images`."""
            nonlocal anchor
            if anchor is not None or not getattr(self.generator, "starts_at_input", False):
                raise UsageError(
                    "the reused graph allows one evaluation of the objective, at the input: use FGSM, or mode exact"
                )
            leaf = images.detach().requires_grad_()
            with require_found(model):
                anchor = model(leaf.view_as(leaf))  # A view, because the FLOP counter's hooks reject leaf tensors.
            with preserved_buffers(module_of(self.criterion)):
                loss = self._loss(detached(anchor), anchor, *detached(rest))
            (slope,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            return (images * slope).sum()

        views = self.generator(x0, objective)
        anchor = model(x0) if anchor is None else anchor  # RandomDirection never evaluates the objective.
        return self._terms(model, anchor, model(x1), rest, views)


class HalfBatchLoss(AdversarialLoss):
    """Adversarial loss that attacks the first half of each batch. The adversarial term is the loss of that half.

    Example:
        >>> x0, x1 = torch.randn(2, 4, 3, 8, 8)
        >>> output = HalfBatchLoss(NTXentLoss(), CLAE(eps=0.03))(nn.Flatten(), x0, x1)
        >>> output.views.shape
        torch.Size([2, 3, 8, 8])
    """

    def _attack(self, model: Callable[[Tensor], Any], images: Tensor, rest: list[Any], anchor: Any = None) -> Tensor:
        count = -(-len(images) // 2)
        return super()._attack(model, images[:count], first_samples(rest, count))

    def _terms(self, model: Any, anchor: Any, positive: Any, rest: list[Any], views: Tensor) -> AdversarialOutput:
        first, second, others = (first_samples(part, len(views)) for part in (anchor, positive, rest))
        with self._adversarial(model):
            output = model(views)
            adversarial = self._loss(first, output, *others)
        clean = self._loss(anchor, positive, *rest)
        total = clean + self.weight * adversarial
        return AdversarialOutput(total, *detached((clean, adversarial, views, (first, second, output))))


class SharedBatchNormLoss(AdversarialLoss):
    """Adversarial loss without an adversarial BatchNorm branch (ablation).

    All views pass through the same BatchNorms, so the running statistics also include those of x'.
    """

    @staticmethod
    def _require(network: nn.Module) -> None:
        """Accept any BatchNorm."""

    def _attack(self, model: Callable[[Tensor], Any], images: Tensor, rest: list[Any], anchor: Any = None) -> Tensor:
        """Search for x' without changing the running statistics of any BatchNorm."""
        with preserved_buffers(module_of(model), norms=True):
            return super()._attack(model, images, rest, anchor)


class ThirdViewLoss(AdversarialLoss):
    """Loss with a third ordinary view instead of an adversarial one (control).

    The third view passes through the adversarial branch of the BatchNorms, if there is one.

    Args:
        criterion: Pair loss or function of one output per view; see `AdversarialLoss`.
        weight: Weight of the loss between the first and the third view.
    """

    def __init__(self, criterion: Callable[..., Tensor], weight: float = 1.0) -> None:
        super().__init__(criterion, nn.Identity(), weight)

    def forward(self, model: Callable[[Tensor], Any], x0: Tensor, x1: Tensor, *others: Tensor) -> AdversarialOutput:
        """Compute both terms. The first of `others` is the third view. See `AdversarialLoss` for the arguments."""
        third, *local = others
        anchor, positive, *rest = [model(x) for x in (x0, x1, *local)]
        return self._terms(model, anchor, positive, rest, third)


class UnperturbedLoss(SharedBatchNormLoss):
    """Loss whose second term compares the first view with itself (control).

    It equals `SharedBatchNormLoss` with a perturbation of 0, without its further forward passes. For a contrastive
    loss, the second term is a uniformity term: the positive pair is constant, and only the negatives have a gradient.

    Args:
        criterion: Pair loss or function of one output per view; see `AdversarialLoss`.
        weight: Weight of the second term.
    """

    def __init__(self, criterion: Callable[..., Tensor], weight: float = 1.0) -> None:
        super().__init__(criterion, nn.Identity(), weight)

    def forward(self, model: Callable[[Tensor], Any], x0: Tensor, x1: Tensor, *others: Tensor) -> AdversarialOutput:
        """Compute both terms. See `AdversarialLoss` for the arguments."""
        anchor, positive, *rest = [model(x) for x in (x0, x1, *others)]
        return self._terms(lambda images: anchor, anchor, positive, rest, x0)


class ReplacedOutput(NamedTuple):
    """Output of `ReplacingLoss`. Only `total` carries gradients. All other fields are detached.

    Attributes:
        total: Scalar to minimise, the loss of the pair (x0, x1').
        adversarial: The same scalar, detached, under the name that it has in `AdversarialOutput`.
        views: Adversarial views x1', (N, C, H, W).
        outputs: Outputs of the model for x0 and x1', with None for x1 between them.
    """

    total: Tensor
    adversarial: Tensor
    views: Tensor
    outputs: tuple[Any, None, Any]

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name)


class ReplacingLoss(AdversarialLoss):
    """Loss whose second view is made adversarial: L(f(x0), f_adv(x1')), without a clean term.

    The search starts at the second view x1 and raises the loss against the fixed output of x0. With a search of one
    gradient step, a training step costs 8 / 6 of one without an attack. With a generator that never evaluates the
    objective, it costs no more than one without. Both are without the generator's own FLOPs.

    Only outputs of x0 enter queues, memory banks and centres. Losses that store both views store those of x0 twice.

    Args:
        criterion: Pair loss or function of one output per view; see `AdversarialLoss`.
        generator: View generator; see `AdversarialLoss`.

    Example:
        >>> x0, x1 = torch.randn(2, 4, 3, 8, 8)
        >>> output = ReplacingLoss(NTXentLoss(), CLAE(eps=0.03))(nn.Flatten(), x0, x1)
        >>> round((output.views - x1).abs().max().item(), 3)
        0.03
    """

    def __init__(self, criterion: Callable[..., Tensor], generator: Callable[..., Tensor]) -> None:
        super().__init__(criterion, generator)

    def forward(  # type: ignore[override]
        self, model: Callable[[Tensor], Any], x0: Tensor, x1: Tensor, *others: Tensor
    ) -> ReplacedOutput:
        """Compute the loss. See `AdversarialLoss` for the arguments.

        Raises:
            ModelError: See `AdversarialLoss.forward`.
        """
        with self._checked(model):
            anchor, *rest = [model(x) for x in (x0, *others)]
        views = self._attack(model, x1, detached(rest), detached(anchor))
        with self._adversarial(model):
            output = model(views)
            total = self._loss(anchor, output, *rest)
        # The following call fills queues, memory banks and centres. Lightly fills them only if there are gradients.
        self._loss(anchor, anchor, *rest)
        return ReplacedOutput(total, *detached((total, views, (anchor, None, output))))


class SharedReplacingLoss(ReplacingLoss, SharedBatchNormLoss):
    """`ReplacingLoss` without an adversarial BatchNorm branch."""


Place = Literal["add", "replace"]
"""Place of the adversarial view, in a second term of the loss or instead of the second view."""
REPLACING: dict[Mode, type[ReplacingLoss]] = {"exact": ReplacingLoss, "shared": SharedReplacingLoss}
LOSSES: dict[Mode, type[AdversarialLoss]] = {
    "exact": AdversarialLoss, "reused": ReusedGraphLoss, "half": HalfBatchLoss, "shared": SharedBatchNormLoss,
}  # fmt: skip
