"""Ablation: an augmentation, the method alone, and the controls that show which part of it helps."""

from __future__ import annotations

from typing import Literal, get_args

Metric = Literal["knn", "knn_projection", "linear", "rankme"]
"""Figures that can decide an ablation. They rise with the quality of the features."""
METRICS: tuple[Metric, ...] = get_args(Metric)
