"""UEL: invariant and spreading instance features."""

from __future__ import annotations

from idaa_lightly.criteria import UELLoss
from idaa_lightly_plugins.methods.plain import Plain


class UEL(Plain):
    """Unsupervised embedding learning: each view is told from all others, one by one.

    Source: Ye et al., "Unsupervised Embedding Learning via Invariant and Spreading Instance Feature", CVPR 2019;
    recipe of Ho & Vasconcelos, NeurIPS 2020, the same as for Plain.
    """

    criterion_class = UELLoss
