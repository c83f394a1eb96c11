"""Model outputs and batches: a tensor, or a tuple, list or dict of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from idaa_lightly.errors import UsageError


def detached(output: Any) -> Any:
    """Return an output with all tensors detached from the graph.

    Args:
        output: Tensor, or tuple, list or dict of tensors, nested if need be. Anything else is returned unchanged.
    """
    return _mapped(Tensor.detach, output)


def first_samples(output: Any, count: int) -> Any:
    """Return an output for the first samples only.

    Args:
        output: Tensor, or tuple, list or dict of tensors, nested if need be. The first dimension is that of the
            samples. Scalars and anything else are returned unchanged.
        count: Number of samples to keep.
    """
    return _mapped(lambda part: part[:count] if part.ndim else part, output)


def _mapped(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    """Return an output with a function applied to all tensors in it."""
    if isinstance(output, Tensor):
        return function(output)
    if isinstance(output, dict):
        return {key: _mapped(function, value) for key, value in output.items()}
    if isinstance(output, tuple | list):
        parts = [_mapped(function, value) for value in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output


def first_of(batch: Any) -> Any:
    """Return the first entry of nested tuples and lists, or `batch` itself if it is none."""
    while isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    return batch


def missing_attribute(output: Any, name: str) -> AttributeError:
    """Return the error of a missing attribute of an output that holds several losses, such as `backward`."""
    hint = f": use `.total.{name}`, since the output holds several losses" if hasattr(Tensor, name) else ""
    return AttributeError(f"{type(output).__name__} has no attribute {name!r}{hint}")


def embedding_of(output: Any) -> Tensor:
    """Return the embedding in a model's output: the output itself, or the first entry of a tuple, list or dict.

    Args:
        output: Tensor, or tuple, list or dict of tensors.

    Raises:
        UsageError: The embedding is not a tensor of shape (N, D), or it has no gradient although gradients are enabled.
    """
    parts = list(output.values()) if isinstance(output, dict) else output
    embedding = parts[0] if isinstance(parts, tuple | list) else parts
    if not (isinstance(embedding, Tensor) and embedding.ndim == 2):
        got = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
        raise UsageError(f"the first output of the model is {got}, but expected an embedding of shape (N, D)")
    if torch.is_grad_enabled() and not embedding.requires_grad:
        raise UsageError("the first output of the model has no gradient, but expected one from the trained network")
    return embedding
