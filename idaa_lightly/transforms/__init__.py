"""Lightly's transforms for whole batches on the training device."""
