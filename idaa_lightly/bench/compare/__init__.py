"""Comparison of finished runs as tables."""
