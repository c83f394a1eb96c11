"""Training runs: from a configuration to a run directory."""
