"""HCL: contrastive learning with hard negatives."""

from __future__ import annotations

from typing import Any

from torch import nn

from idaa_lightly.options import NonNegative
from idaa_lightly_plugins.methods.debiased import Debiased


class HCL(Debiased):
    """Contrastive learning with hard negatives (HCL): debiased contrast with higher weights for hard negatives.

    Source: Robinson et al., "Contrastive Learning with Hard Negative Samples", ICLR 2021, Sec. 3.2 and 5. The recipe is
    that of Chuang et al., NeurIPS 2020.

    Args:
        beta: Concentration on hard negatives. 0 weights all negatives equally.
    """

    def __init__(self, backbone: nn.Module, num_features: int, *, beta: NonNegative = 1.0, **options: Any) -> None:
        super().__init__(backbone, num_features, **options)
        self.criterion.beta = beta
