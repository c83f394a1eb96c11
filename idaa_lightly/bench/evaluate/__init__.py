"""Evaluation of finished runs, checkpoints and feature files."""
