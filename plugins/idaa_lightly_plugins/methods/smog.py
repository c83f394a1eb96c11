"""SMoG."""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules import SMoGPredictionHead, SMoGProjectionHead, SMoGPrototypes
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.smog_transform import SMoGTransform
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.distributed import gathered
from idaa_lightly.errors import UsageError
from idaa_lightly.options import Count, Fraction, NonNegative, Positive
from idaa_lightly_plugins.methods.recipe import MomentumRecipe, keep_in_checkpoints

Triple = tuple[Tensor, Tensor, Tensor]


class SMoG(MomentumRecipe):
    """Synchronous momentum grouping (SMoG): a view predicts the group to which the momentum network assigns another.

    Groups are moving averages of projections, through which the gradient flows. At regular intervals, k-means on a
    memory bank restarts them. Only clean views enter groups and memory bank.

    Source: Pang et al., "Unsupervised Visual Representation Learning by Synchronous Momentum Grouping", ECCV 2022,
    Sec. 3. The recipe is Lightly's CIFAR-10 benchmark: SGD, learning rate 0.01, weight decay 1e-6, batches of 128
    images.

    Differs from Lightly's benchmark: the two views are not swapped in every second step, because an attack needs the
    gradient of the positive.

    Args:
        temperature: Temperature of the softmax over groups.
        groups: Number of groups.
        group_momentum: Momentum of the groups, β in the paper.
        bank: Number of projections in the memory bank.
        restart: Steps between restarts of the groups and of the momentum network.
        lr: Learning rate of SGD. Lightly's benchmark does not scale it with the batch size.
        hidden_dim: Width of the projection head and the predictor.
        projection_dim: Dimension of the projection.
    """

    batch_size = 128
    scales_lr = False
    weight_decay = 1e-6

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.1,
        groups: Count = 300,
        group_momentum: Fraction = 0.99,
        bank: Count = 10000,
        restart: Count = 300,
        lr: NonNegative = 0.01,
        hidden_dim: Count = 2048,
        projection_dim: Count = 128,
        **options: Any,
    ) -> None:
        if bank < groups:
            raise UsageError(f"bank is {bank}, but k-means needs one projection or more for each of {groups} groups")
        head = SMoGProjectionHead(num_features, hidden_dim, projection_dim)
        super().__init__(backbone, num_features, head, lr=lr, **options)
        self.predictor = SMoGPredictionHead(projection_dim, hidden_dim, projection_dim)
        drawn = F.normalize(torch.rand(groups, projection_dim), dim=1)
        self.groups = SMoGPrototypes(drawn, group_momentum)
        del self.groups.group_features  # Lightly has a parameter, which an attack could change.
        self.groups.register_buffer("group_features", drawn)
        self.bank = MemoryBankModule((bank, projection_dim), gather_distributed=True)
        keep_in_checkpoints(self.bank)
        self.temperature, self.restart = temperature, restart

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter, greyscale, and solarisation of a fifth of second views."""
        return SMoGTransform(
            (image_size, image_size),
            (1, 1),
            (0.2, 0.2),
            (1.0, 1.0),
            gaussian_blur_probs=(0.0, 0.0),
            solarize_probs=(0.0, 0.2),
            normalize=normalize,
        )

    def embed(self, images: Tensor) -> Triple:
        """Return predictions, projections, and projections by the momentum network, (N, projection_dim) each."""
        projection = self.project(images)
        return self.predictor(projection), projection, self.project_by_momentum(images)

    def loss(self, anchor: Triple, positive: Triple, *others: Triple) -> Tensor:
        """Compute the cross-entropy of the positive's prediction with the anchor's group, and move the groups."""
        moved = self.groups.get_updated_group_features(gathered(positive[1]))
        logits = self.groups(positive[0], moved, self.temperature)
        loss = F.cross_entropy(logits, self.groups.assign_groups(anchor[2]))
        self.groups.set_group_features(moved.detach())
        self.bank(positive[1], update=True)
        return loss

    def before_step(self, step: int, epochs: int, steps_per_epoch: int) -> None:
        """Update the momentum network, or restart it and the groups (Table 7b of the paper)."""
        if step == 0 or step % self.restart:
            super().before_step(step, epochs, steps_per_epoch)
            return
        self.follow(0.0)
        old, features = self.groups.group_features, self.bank.bank
        centres = KMeans(len(old), random_state=step).fit(features.cpu().numpy()).cluster_centers_
        self.groups.set_group_features(F.normalize(torch.from_numpy(centres).to(old), dim=1))
