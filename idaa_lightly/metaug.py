"""MetAug: augmentation of embeddings instead of images, with generators that a meta step trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from lightly.utils import dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from idaa_lightly.distributed import SumOverRanks, gathered
from idaa_lightly.errors import UsageError
from idaa_lightly.isolation import preserved_buffers
from idaa_lightly.options import Count, NonNegative, checked
from idaa_lightly.outputs import embedding_of, missing_attribute

Contrast = Callable[..., Tensor]
"""Function that maps one embedding (N, D) per view to a scalar loss."""
Bounds = Literal["anchor", "batch"]
"""Embeddings that a bound of the margin is taken over, the positives and negatives of each anchor or of the batch."""
WIDENING = 4
"""Default width of a generator, in multiples of the embedding's dimension."""


class FeatureGenerator(nn.Module):
    """MLP that maps embeddings (N, D) to augmented embeddings of length 1, (N, D).

    Source: Li et al., ICML 2022, appendix: an MLP D → 2048 → 2048 → D with BatchNorm and ReLU.

    Args:
        dim: Dimension D of the embeddings.
        hidden_dim: Width of the two hidden layers. None takes 4 · dim, since the paper's 2048 cost more than a small
            network.

    Example:
        >>> FeatureGenerator(dim=8)(torch.randn(4, 8)).shape
        torch.Size([4, 8])
    """

    @checked
    def __init__(self, dim: Count, hidden_dim: Count | None = None) -> None:
        super().__init__()
        hidden_dim = hidden_dim or WIDENING * dim
        hidden = [
            part
            for inside in (dim, hidden_dim)
            for part in (nn.Linear(inside, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU())
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(hidden_dim, dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return augmented embeddings of length 1, (N, D). Only the direction of `embeddings`, (N, D), matters."""
        return F.normalize(self.layers(F.normalize(embeddings, dim=1)), dim=1)


class MetAugOutput(NamedTuple):
    """Output of `MetAugLoss`. All fields are scalars, and only `total` carries gradients.

    Attributes:
        total: Value of L(θ, ω). `total.backward()` gives θ and ω the gradients of their own steps.
        contrast: Contrast of the embeddings.
        augmented: Contrast of the embeddings and the augmented embeddings.
        margin: Margin R.
    """

    total: Tensor
    contrast: Tensor
    augmented: Tensor
    margin: Tensor

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name)


class MetAugLoss(nn.Module):
    """Contrastive loss with augmented embeddings, whose generators are trained through one step of the network.

    The network θ minimises L(θ, ω) = contrast(z0, z1) + feature_weight · contrast(z0, z1, ẑ0, ẑ1), with
    ẑ = generator_ω(z). The generators ω minimise L(θ̂, ω) + margin_weight · R. The step θ̂ = θ − inner_lr · ∇_θ L(θ, ω)
    is kept in the graph, or left out if `second_order` is False: θ̂ = θ. The margin R, see `margin`, keeps augmented
    positives far and negatives near.

    Source: Li et al., "MetAug: Contrastive Learning via Meta Feature Augmentation", ICML 2022, Sec. 3.1 to 3.3.

    Differs from the paper: two ordinary views and in-batch negatives replace colour spaces and a memory bank. Both
    steps start from the same θ, so that one backward pass and one optimiser serve both.

    Args:
        contrast: Contrastive loss that takes the embeddings (N, D) of two or more views, such as `OUCLLoss()`.
        generators: Two generators, one for each view.
        feature_weight: Weight of the contrast with augmented embeddings.
        margin_weight: Weight of the margin term.
        inner_lr: Learning rate of the inner step, ℓ in the paper. Unused if `second_order` is False.
        second_order: Train the generators through a step of the network, as in the paper. False takes their gradient at
            the present network, which needs no second derivatives.
        bounds: Embeddings that the bounds of the margin are taken over.
        gather_distributed: Average the inner gradient over all ranks, and take the margin over all their embeddings.
            `contrast` needs an argument of its own, such as `OUCLLoss(gather_distributed=True)`.
        embeddings: Function that takes the outputs of the model for both views and returns their embeddings, (N, D)
            each. None takes the output itself, or its first entry.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
        >>> generators = FeatureGenerator(dim=8), FeatureGenerator(dim=8)
        >>> criterion = MetAugLoss(OUCLLoss(), generators, feature_weight=1, margin_weight=1)
        >>> parameters = [*model.parameters(), *criterion.parameters()]
        >>> optimizer = torch.optim.SGD(parameters, lr=0.1)
        >>> x0, x1 = torch.randn(2, 4, 3, 8, 8)
        >>> criterion(model, x0, x1).total.backward()
        >>> optimizer.step()
    """

    @checked
    def __init__(
        self,
        contrast: Contrast,
        generators: Iterable[nn.Module],
        *,
        feature_weight: NonNegative,
        margin_weight: NonNegative,
        inner_lr: NonNegative = 1e-3,
        second_order: bool = False,
        bounds: Bounds = "anchor",
        gather_distributed: bool = False,
        embeddings: Callable[[Any, Any], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings or _first
        self.contrast, self.generators = contrast, nn.ModuleList(generators)
        self.weights, self.inner_lr = (feature_weight, margin_weight), inner_lr
        self.second_order, self.bounds = second_order, bounds
        self.gather_distributed = gather_distributed

    def forward(self, model: nn.Module, x0: Tensor, x1: Tensor) -> MetAugOutput:
        """Compute the gradients of both steps. `total.backward()` adds them to the `.grad` of the parameters.

        Args:
            model: Network that maps images (N, C, H, W) to an embedding (N, D), or to a tuple, list or dict whose first
                entry is the embedding.
            x0: First view of the samples, (N, C, H, W).
            x1: Second view of the samples, (N, C, H, W).

        Raises:
            UsageError: The model is no nn.Module, or its output holds no embedding (N, D) with a gradient.
        """
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"the model is {getattr(model, '__qualname__', type(model).__name__)!r}, but MetAugLoss needs the "
                "parameters of an nn.Module: pass the module itself"
            )
        omega = [part for part in self.generators.parameters() if part.requires_grad]
        own = set(map(id, omega))  # The model may contain this loss, as a LightningModule does.
        contrast, augmented, margin = self._terms(model(x0), model(x1))
        loss = contrast + self.weights[0] * augmented
        theta = {name: part for name, part in model.named_parameters() if part.requires_grad and id(part) not in own}
        if self.second_order:
            slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True, materialize_grads=True)
            slopes = _mean_over_ranks(slopes) if self.gather_distributed else slopes
            moved = [part - self.inner_lr * slope for part, slope in zip(theta.values(), slopes, strict=True)]
            ahead = dict(zip(theta, moved, strict=True))
            with preserved_buffers(model, self):
                outputs = [functional_call(model, ahead | _copies(model), x) for x in (x0, x1)]
                meta_contrast, meta_augmented, margin = self._terms(*outputs)
            meta = meta_contrast + self.weights[0] * meta_augmented + self.weights[1] * margin
            meta_slopes = torch.autograd.grad(meta, omega, materialize_grads=True)
        else:  # All collectives of several ranks run here: within the backward pass of DDP, they block each other.
            meta = loss + self.weights[1] * margin
            meta_slopes = torch.autograd.grad(meta, omega, retain_graph=True, materialize_grads=True)
            slopes = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
        total = loss.detach() + _carrying([*theta.values(), *omega], [*slopes, *meta_slopes])
        return MetAugOutput(total, contrast.detach(), augmented.detach(), margin.detach())

    def _terms(self, *outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the contrast of the embeddings, the contrast with augmented embeddings, and the margin."""
        z0, z1 = self.embeddings(*outputs)
        with torch.autocast(z0.device.type, enabled=False):  # Half precision is too coarse for second derivatives.
            z0, z1 = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (z0, z1))
            made0, made1 = (generator(z) for generator, z in zip(self.generators, (z0, z1), strict=True))
            augmented = self.contrast(z0, z1, made0, made1)
            together = torch.stack([z0, z1, made0, made1])
            far = margin(*(gathered(together) if self.gather_distributed else together), bounds=self.bounds)
            return self.contrast(z0, z1), augmented, far


def margin(z0: Tensor, z1: Tensor, made0: Tensor, made1: Tensor, *, bounds: Bounds = "anchor") -> Tensor:
    """Return the margin R = mean [d̂⁺ − σ⁺]₊ + mean [σ⁻ − d̂⁻]₊ of `MetAugLoss`.

    With d = (cos + 1) / 2, d⁺ denotes the similarity within a sample and d⁻ that between samples. d̂ are those of the
    augmented embeddings. The bounds σ⁺ = min(min d⁺, max d⁻) and σ⁻ = max(min d⁺, max d⁻) are taken from z0 and z1 and
    detached. Embeddings of both views are anchors, which are compared with the other view.

    Source: Li et al., ICML 2022, Sec. 3.2. The authors' code takes the bounds per anchor. It also multiplies the first
    of the two means by 1e-4, which is left out here.

    Args:
        z0: Embeddings of the first view, (N, D).
        z1: Embeddings of the second view, (N, D).
        made0: Augmented embeddings of the first view, (N, D).
        made1: Augmented embeddings of the second view, (N, D).
        bounds: Take σ⁺ and σ⁻ over the positive and the negatives of each anchor, or over all of the batch.
    """
    given, made = _similarities(z0.detach(), z1.detach()), _similarities(made0, made1)
    return (_one_way(given, made, bounds) + _one_way(given.T, made.T, bounds)) / 2


def _one_way(given: Tensor, made: Tensor, bounds: Bounds) -> Tensor:
    """Return the margin, given the similarities (N, N) of anchors, the rows, to the other view."""
    others = ~torch.eye(len(given), dtype=torch.bool, device=given.device)
    positive, nearest = given.diagonal(), given.masked_fill(~others, 0).amax(1)  # 0 is the smallest similarity.
    if bounds == "batch":
        positive, nearest = positive.min().expand_as(positive), nearest.max().expand_as(nearest)
    low, high = torch.minimum(positive, nearest), torch.maximum(positive, nearest)
    return (made.diagonal() - low).clamp_min(0).mean() + (high[:, None] - made)[others].clamp_min(0).mean()


def _similarities(a: Tensor, b: Tensor) -> Tensor:
    """Return the similarities in [0, 1] of all pairs, (N, N)."""
    return (F.normalize(a, dim=1) @ F.normalize(b, dim=1).T + 1) / 2


def _first(anchor: Any, positive: Any) -> tuple[Tensor, Tensor]:
    return embedding_of(anchor), embedding_of(positive)


def _carrying(parameters: Iterable[Tensor], slopes: Iterable[Tensor]) -> Tensor:
    """Return a scalar that is 0 and whose gradients are `slopes`."""
    terms = [((part - part.detach()) * slope.detach()).sum() for part, slope in zip(parameters, slopes, strict=True)]
    return torch.stack(terms).sum()


def _mean_over_ranks(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the means of tensors over all ranks, differentiable. A single reduction serves all tensors."""
    if dist.world_size() == 1:
        return tensors
    flat = SumOverRanks.apply(torch.cat([tensor.flatten() for tensor in tensors])) / dist.world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))


def _copies(model: nn.Module) -> dict[str, Tensor]:
    """Clone all buffers, so that only the first pass updates the running statistics."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}
