"""Base classes of plugins: methods, augmentations and backbones.

Options of a plugin are the keyword-only arguments of its constructor; see `idaa_lightly.options`.
"""

from __future__ import annotations

from idaa_lightly.plugin.augmentations import Augmentation, GeneratorAugmentation, LearnedAugmentation
from idaa_lightly.plugin.controls import Control
from idaa_lightly.plugin.fitting import FitContext
from idaa_lightly.plugin.methods import Backbone, Method, PairMethod

__all__ = [
    "Augmentation", "Backbone", "Control", "FitContext", "GeneratorAugmentation", "LearnedAugmentation", "Method",
    "PairMethod",
]  # fmt: skip
