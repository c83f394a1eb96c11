"""Ablation: an augmentation, the method alone, and the controls that show which part of it helps."""
