"""Sweeps: many runs as processes or cluster jobs."""
