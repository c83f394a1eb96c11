"""Sweeps: many runs, as local processes or cluster jobs."""
