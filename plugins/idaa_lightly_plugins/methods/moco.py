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
    """Momentum contrast v2 (MoCo): queries against keys of a momentum network and a queue of keys.

    Attacks get their gradient through the view's query, which is compared with the anchor's key and the queue. Only
    keys of clean views enter the queue.

    Source: He et al., "Momentum Contrast", CVPR 2020, Sec. 3.2; Chen et al., "Improved Baselines with Momentum
    Contrastive Learning", 2020 (projection head). The recipe is Lightly's CIFAR-10 benchmark, with its symmetric loss.

    Differs from the paper and the benchmark: nothing prevents the network from recognising keys of the same batch by
    the BatchNorm statistics. To prevent this, the paper shuffles batches across devices, and the benchmark also
    splits each batch into eight parts.

    Args:
        temperature: Temperature of the loss, which divides the cosines.
        projection_dim: Dimension of the projection.
        queue: Number of keys in the queue.
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
        """Return queries and keys of the momentum network, (N, projection_dim) each."""
        return self.project(images), self.project_by_momentum(images)

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Contrast each query with the other view's key and the queue.

        A single call of the criterion serves both directions, so that the queue does not yet hold the two keys.
        """
        queries, keys = torch.cat([positive[0], anchor[0]]), torch.cat([anchor[1], positive[1]])
        loss: Tensor = self.criterion(queries, keys)
        return loss
