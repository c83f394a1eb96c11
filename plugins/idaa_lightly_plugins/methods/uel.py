"""UEL: invariant and spreading instance features."""

from __future__ import annotations

from idaa_lightly.criteria import UELLoss
from idaa_lightly_plugins.methods.plain import Plain


class UEL(Plain):
    """Unsupervised embedding learning (UEL): each view is distinguished from every other by a binary loss.

    Source: Ye et al., "Unsupervised Embedding Learning via Invariant and Spreading Instance Feature", CVPR 2019. The
    recipe is that of Ho & Vasconcelos, NeurIPS 2020, as in `Plain`.
    """

    criterion_class = UELLoss
