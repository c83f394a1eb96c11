"""DINO with the KoLeo regulariser of DINOv2."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss import KoLeoLoss
from torch import Tensor, nn

from idaa_lightly.distributed import gathered
from idaa_lightly.options import NonNegative
from idaa_lightly_plugins.methods.dino import DINO, Outputs
from idaa_lightly_plugins.methods.recipe import full_precision


class DINOv2(DINO):
    """DINOv2's losses that compare images: DINO, and KoLeo, which spreads the features of the two global views.

    Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, Sec. 4. The weight
    of KoLeo is that of Lightly's example (examples/pytorch/dinov2.py). All other settings are those of `dino`.

    Differs from the paper: no loss on masked patches (iBOT), which needs the tokens of a vision transformer, one head,
    and the centring of DINO instead of Sinkhorn-Knopp.

    Args:
        koleo: Weight of KoLeo.
    """

    def __init__(self, backbone: nn.Module, num_features: int, *, koleo: NonNegative = 0.1, **options: Any) -> None:
        super().__init__(backbone, num_features, **options)
        self.koleo, self.spread = koleo, KoLeoLoss()

    def embed(self, images: Tensor) -> Outputs:
        """Return outputs of student and teacher, (N, projection_dim) each, and the student's features."""
        features = self.backbone(images).flatten(1)
        return self.head(features), self.project_by_momentum(images), features

    def loss(self, anchor: Outputs, positive: Outputs, *others: Outputs) -> Tensor:
        """Return the loss of DINO plus KoLeo of the global views' features on all ranks."""
        with torch.autocast(anchor[2].device.type, enabled=False):  # Half precision finds wrong neighbours.
            spread = sum(self.spread(gathered(full_precision(view[2]))) for view in (anchor, positive))
        loss: Tensor = super().loss(anchor, positive, *others) + self.koleo * spread
        return loss
