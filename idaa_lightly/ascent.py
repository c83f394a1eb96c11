"""Searches for the perturbation of a point that raises an objective, inside a ball around it.

An ascent is called with `value`, a function from a perturbation to the scalar to raise, and with the point to
perturb, of shape (N, ...); it returns the perturbation. The ball is each sample's own: `eps` bounds the largest
coordinate (linf) or the length (l2), in the units of the space.
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
    """What a ViewGenerator asks of a search."""

    eps: float
    norm: Norm
    random_start: bool

    def __call__(self, value: Value, point: Tensor) -> Tensor:
        """Returns the perturbation of `point`."""


class FGSM:
    """One step of length eps along the sign of the gradient (linf) or the gradient (l2), from the point itself.

    Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2014, Sec. 4.

    Args:
        eps: Radius of the ball, in the units of the space.
        norm: "linf" or "l2".
    """

    random_start = False

    @checked
    def __init__(self, eps: NonNegative, norm: Norm = "linf") -> None:
        self.eps, self.norm = float(eps), norm

    def __call__(self, value: Value, point: Tensor) -> Tensor:
        """Returns the perturbation of `point`."""
        return self.eps * direction(gradient(value, torch.zeros_like(point)), self.norm)


class PGD(nn.Module):
    """Several projected gradient steps, from the point or from a random start in the ball.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, Sec. 2.1.

    Args:
        eps: Radius of the ball, in the units of the space.
        steps: Number of steps.
        step_size: length of a step; 2.5 · eps / steps where it is None, as in the authors' CIFAR-10 settings.
        norm: "linf" or "l2".
        random_start: start from a uniformly drawn point of the linf ball, or a random direction of the l2 ball.
        seed: of the random start.
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
        """Returns the perturbation of `point`."""
        delta = torch.zeros_like(point)
        if self.noise is not None:
            drawn = self.noise.like(point)
            uniform = self.eps * torch.erf(drawn / math.sqrt(2))
            delta = uniform if self.norm == "linf" else self.eps * direction(drawn, "l2")
        for _ in range(self.steps):
            step = direction(gradient(value, delta), self.norm)
            delta = project(delta + self.step_size * step, self.eps, self.norm)
        return delta


class RandomDirection(nn.Module):
    """No search: a random direction of the length that `FGSM` would go. The control of every adversarial claim.

    Args:
        eps: Radius of the ball, in the units of the space.
        norm: "linf" (random signs) or "l2" (uniform on the sphere).
        seed: of the directions.
    """

    random_start = True

    @checked
    def __init__(self, eps: NonNegative, norm: Norm = "linf", seed: int = 0) -> None:
        super().__init__()
        self.eps, self.norm = float(eps), norm
        self.noise = Noise(seed)

    def forward(self, value: Value, point: Tensor) -> Tensor:
        """Returns the perturbation of `point`; `value` is not asked."""
        return self.eps * direction(self.noise.like(point), self.norm)


class Noise(nn.Module):
    """Normal noise that leaves torch's global random stream alone.

    The n-th call depends on the seed, the rank and n only, and n is part of the state dict: a resumed run draws what
    an uninterrupted one would have drawn, and every rank draws its own.

    Args:
        seed: of the stream.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.calls = seed, 0

    def like(self, tensor: Tensor) -> Tensor:
        """Draws standard normal noise with the shape, type and device of `tensor`."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        generator = torch.Generator(tensor.device).manual_seed(seed_of("noise", self.seed, rank, self.calls))
        self.calls += 1
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)

    def get_extra_state(self) -> dict[str, Any]:
        """The number of calls so far, for the state dict."""
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes up where the state dict stopped."""
        self.calls = int(state["calls"])


def gradient(value: Value, delta: Tensor) -> Tensor:
    """Gradient of the objective at `delta`; no other `.grad` is touched and no parameter's gradient computed."""
    with torch.enable_grad():
        delta = delta.detach().requires_grad_()
        scalar = value(delta)
        if scalar.ndim != 0 or not scalar.requires_grad:
            raise UsageError(
                f"the objective gave a tensor of shape {tuple(scalar.shape)} "
                f"{'with' if scalar.requires_grad else 'without'} a gradient, but an attack needs a scalar that "
                "depends on the images: reduce it, and take no detach() or no_grad() around it; in a method's "
                "loss(anchor, positive) they come in by `positive`"
            )
        (result,) = torch.autograd.grad(scalar, delta)
    return result


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Unit step along `gradient`: its sign (linf), or each sample scaled to length 1 (l2; zero stays zero)."""
    if norm == "linf":
        return gradient.sign()
    return gradient / lengths(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


def project(delta: Tensor, eps: float, norm: Norm) -> Tensor:
    """Nearest perturbation inside the ball of radius `eps`."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    length = lengths(delta)
    return torch.where(length > eps, delta * (eps / length.clamp_min(torch.finfo(delta.dtype).tiny)), delta)


def lengths(delta: Tensor) -> Tensor:
    """Euclidean length of each sample, shape (N, 1, ...) to broadcast against `delta`."""
    flat = delta.flatten(1)
    largest = flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)  # squares must not underflow
    norms: Tensor = (flat / largest).norm(dim=1, keepdim=True) * largest
    return norms.view(-1, *[1] * (delta.ndim - 1))
