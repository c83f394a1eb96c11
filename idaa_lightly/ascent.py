"""Ascents: searches for a perturbation that raises an objective, inside a ball around a point.

An ascent is called with `value`, a function that maps a perturbation to the scalar to raise, and with the point to
perturb, of shape (N, ...). It returns the perturbation. Each sample has its own ball. The radius `eps` bounds the
largest coordinate (linf) or the length (l2), in the units of the space.

If the gradient of a sample is infinite or NaN, as after an overflow in half precision, its search is lost, and its
perturbation is NaN. A `ViewGenerator` then returns the unchanged image and counts it. The searches of other samples are
not affected, unless the objective itself is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from idaa_lightly.errors import UsageError
from idaa_lightly.options import Count, NonNegative, checked
from idaa_lightly.seeding import seed_of

Norm = Literal["linf", "l2"]
Value = Callable[[Tensor], Tensor]


class Ascent(Protocol):
    """Protocol of the searches that a `ViewGenerator` uses."""

    eps: float
    norm: Norm
    random_start: bool

    def __call__(self, value: Value, point: Tensor) -> Tensor:
        """Return the perturbation of `point`, (N, ...). It is NaN for samples whose search is lost.

        Args:
            value: Function that maps a perturbation to the scalar to raise.
            point: Point to perturb, (N, ...).
        """


class FGSM:
    """Fast gradient sign method: one step of length `eps` along the gradient's sign (linf) or direction (l2).

    Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2014, Sec. 4.

    Args:
        eps: Radius of the ball, in the units of the space.
        norm: Norm of the ball, "linf" or "l2".

    Example:
        >>> slope = torch.tensor([[3.0, -4.0]])
        >>> FGSM(eps=0.1)(lambda delta: (slope * delta).sum(), torch.zeros(1, 2))
        tensor([[ 0.1000, -0.1000]])
    """

    random_start = False

    @checked
    def __init__(self, eps: NonNegative, norm: Norm = "linf") -> None:
        self.eps, self.norm = float(eps), norm

    def __call__(self, value: Value, point: Tensor) -> Tensor:
        """Return the perturbation of `point`."""
        return self.eps * direction(gradient(value, torch.zeros_like(point)), self.norm)


class PGD(nn.Module):
    """Projected gradient descent: several projected ascent steps, from the point or from a random start in the ball.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, Sec. 2.1.

    Args:
        eps: Radius of the ball, in the units of the space.
        steps: Number of steps.
        step_size: Length of a step. None takes 2.5 · eps / steps, as in the authors' CIFAR-10 settings.
        norm: Norm of the ball, "linf" or "l2".
        random_start: Start from a random point: uniform in the linf ball, or uniform on the surface of the l2 ball.
        seed: Seed of the random start.

    Example:
        >>> slope = torch.tensor([[3.0, -4.0]])
        >>> search = PGD(eps=1.0, steps=5, norm="l2")
        >>> search(lambda delta: (slope * delta).sum(), torch.zeros(1, 2))
        tensor([[ 0.6000, -0.8000]])
    """

    @checked
    def __init__(
        self,
        eps: NonNegative,
        *,
        steps: Count,
        step_size: NonNegative | None = None,
        norm: Norm = "linf",
        random_start: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.eps, self.norm, self.steps = float(eps), norm, steps
        self.step_size = 2.5 * eps / steps if step_size is None else step_size
        self.random_start = random_start
        self.noise = Noise(seed) if random_start else None

    def forward(self, value: Value, point: Tensor) -> Tensor:
        """Return the perturbation of `point`."""
        delta = torch.zeros_like(point)
        if self.noise is not None:
            drawn = self.noise.like(point)
            uniform = self.eps * torch.erf(drawn / math.sqrt(2))
            delta = uniform if self.norm == "linf" else self.eps * direction(drawn, "l2")
        lost = torch.zeros_like(point, dtype=torch.bool)
        for _ in range(self.steps):
            step = direction(gradient(value, delta), self.norm)
            lost = lost | ~finite(step)
            # A lost sample waits at the start, because NaN would reach the others through the objective.
            delta = project(delta + self.step_size * step, self.eps, self.norm).masked_fill(lost, 0)
        return delta.masked_fill(lost, math.nan)


class RandomDirection(nn.Module):
    """Random direction of the length of an `FGSM` step, without a search: the control for adversarial claims.

    Args:
        eps: Radius of the ball, in the units of the space.
        norm: Norm of the ball, "linf" (random signs) or "l2" (uniform on the sphere).
        seed: Seed of the directions.

    Example:
        >>> drawn = RandomDirection(eps=0.1)(lambda delta: delta.sum(), torch.zeros(4, 3))
        >>> drawn.abs().unique()
        tensor([0.1000])
    """

    random_start = True

    @checked
    def __init__(self, eps: NonNegative, norm: Norm = "linf", seed: int = 0) -> None:
        super().__init__()
        self.eps, self.norm = float(eps), norm
        self.noise = Noise(seed)

    def forward(self, value: Value, point: Tensor) -> Tensor:
        """Return the perturbation of `point`. `value` is never evaluated."""
        return self.eps * direction(self.noise.like(point), self.norm)


class Noise(nn.Module):
    """Source of normal noise that does not use torch's global random generator.

    The n-th draw depends only on the seed, the rank and n. The state dict holds n, so a resumed run draws the noise
    that an uninterrupted run would have drawn. Every rank draws its own noise.

    Args:
        seed: Seed of the random stream.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.calls = seed, 0

    def like(self, tensor: Tensor) -> Tensor:
        """Draw standard normal noise with the shape, dtype and device of a tensor.

        Args:
            tensor: Tensor to imitate. Its values are not read.
        """
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        generator = torch.Generator(tensor.device).manual_seed(seed_of("noise", self.seed, rank, self.calls))
        self.calls += 1
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the number of calls so far, for the state dict."""
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the number of calls from the state dict."""
        self.calls = int(state["calls"])


def gradient(value: Value, delta: Tensor) -> Tensor:
    """Return the gradient of `value` at `delta`, without computing or changing the gradient of any parameter.

    Args:
        value: Function that maps a perturbation to a scalar, or to a tensor with one element.
        delta: Perturbation, (N, ...).

    Raises:
        UsageError: `value` does not return one number with a gradient, or it is called in `torch.inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError(
            "an attack needs gradients, which torch.inference_mode switches off: use torch.no_grad, as Lightning does "
            "with Trainer(inference_mode=False)"
        )
    with torch.enable_grad():
        delta = delta.detach().requires_grad_()
        scalar = value(delta)
        if scalar.numel() != 1 or not scalar.requires_grad:
            raise UsageError(
                f"the objective returned a tensor of shape {tuple(scalar.shape)} "
                f"{'with' if scalar.requires_grad else 'without'} a gradient, but an attack needs a scalar that "
                "depends on the images: reduce it to a scalar, without detach() or no_grad(); in a method's "
                "loss(anchor, positive), the images enter through `positive`"
            )
        found: Tensor | None = torch.autograd.grad(scalar, delta, allow_unused=True)[0]
    if found is None:
        raise UsageError(
            "the view does not depend on the point that is searched, but an attack needs its gradient: compute the "
            "view without detach() or no_grad()"
        )
    return found


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Return a unit step along `gradient`: its sign (linf), or each sample scaled to length 1 (l2).

    Zero stays zero. Infinity and NaN become NaN.

    Args:
        gradient: Gradient, (N, ...).
        norm: Norm of the step, "linf" or "l2".
    """
    if norm == "linf":
        return gradient.sign() + 0 * gradient
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))  # Half precision has no such small lengths.
    return (wide / lengths(wide).clamp_min(torch.finfo(wide.dtype).tiny)).to(gradient.dtype)


def project(delta: Tensor, eps: float, norm: Norm) -> Tensor:
    """Return the perturbation inside the ball of radius `eps` that is nearest to `delta`.

    Args:
        delta: Perturbation, (N, ...).
        eps: Radius of each sample's ball.
        norm: Norm of the ball, "linf" or "l2".
    """
    if norm == "linf":
        return delta.clamp(-eps, eps)
    length = lengths(delta)
    return torch.where(length > eps, delta * (eps / length.clamp_min(torch.finfo(delta.dtype).tiny)), delta)


def finite(values: Tensor) -> Tensor:
    """Return whether all values of each sample are finite, with shape (N, 1, ...) to broadcast against `values`.

    Args:
        values: Tensor, (N, ...).
    """
    return values.flatten(1).isfinite().all(1).view(-1, *[1] * (values.ndim - 1))


def lengths(delta: Tensor) -> Tensor:
    """Return the Euclidean length of each sample, with shape (N, 1, ...) to broadcast against `delta`.

    Args:
        delta: Perturbation, (N, ...).
    """
    flat = delta.flatten(1)
    # The coordinates are scaled so that their squares do not underflow.
    largest = flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)
    norms: Tensor = (flat / largest).norm(dim=1, keepdim=True) * largest
    return norms.view(-1, *[1] * (delta.ndim - 1))
