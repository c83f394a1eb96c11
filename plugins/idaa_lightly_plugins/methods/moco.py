"""MoCo v2."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor, nn

from idaa_lightly.options import Count, Positive
from idaa_lightly_plugins.methods.recipe import MomentumRecipe, keep_in_checkpoints

Pair = tuple[Tensor, Tensor]


class MoCo(MomentumRecipe):
    """Momentum contrast, v2, with the symmetric loss: queries against keys of a momentum network and a queue of them.

    The gradient of an attack comes through the query of the view, which is compared with the anchor's key and the
    queue. The queue takes keys of clean views only.

    Source: He et al., "Momentum Contrast", CVPR 2020, Sec. 3.2; Chen et al., "Improved Baselines with Momentum
    Contrastive Learning", 2020 (the head); recipe of Lightly's CIFAR-10 benchmark, with its symmetric loss.

    Differs from the paper: no shuffling of batches over devices before the momentum network.

    Args:
        temperature: scales the cosines.
        projection_dim: dimension of the projection.
        queue: number of keys kept.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.1,
        projection_dim: Count = 128,
        queue: Count = 8192,
        **options: Any,
    ) -> None:
        head = MoCoProjectionHead(num_features, num_features, projection_dim)
        super().__init__(backbone, num_features, head, **options)
        self.criterion = NTXentLoss(temperature, memory_bank_size=(queue, projection_dim), gather_distributed=True)
        keep_in_checkpoints(self.criterion.memory_bank)

    def embed(self, images: Tensor) -> Pair:
        """Queries, and keys of the momentum network (N, projection_dim)."""
        return self.project(images), self.project_by_momentum(images)

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Each query against the other's key; in one call, so that the queue holds neither of the two keys yet."""
        queries, keys = torch.cat([positive[0], anchor[0]]), torch.cat([anchor[1], positive[1]])
        loss: Tensor = self.criterion(queries, keys)
        return loss
