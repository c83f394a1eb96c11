"""Tensors of all ranks, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from lightly.utils import dist
from torch import Tensor
from torch.nn import functional as F


class SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all ranks, whose gradient is summed over the ranks as well.

    Unlike `lightly.utils.dist.gather`, it can be differentiated twice, as MetAug does.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradient with respect to the tensor of this rank."""
        return SumOverRanks.apply(gradient)


def gathered(embeddings: Tensor) -> Tensor:
    """Return the embeddings of all ranks in the order of the ranks, (..., N · ranks, D), with gradients.

    Args:
        embeddings: Embeddings of this rank, (..., N, D). The shape must be the same on all ranks.
    """
    ranks, rank, count = dist.world_size(), dist.rank(), embeddings.shape[-2]
    if ranks == 1:
        return embeddings
    everyones: Tensor = SumOverRanks.apply(F.pad(embeddings, (0, 0, rank * count, (ranks - rank - 1) * count)))
    return everyones
