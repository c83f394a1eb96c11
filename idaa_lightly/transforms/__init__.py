"""Lightly's transforms on whole batches, on the device."""
