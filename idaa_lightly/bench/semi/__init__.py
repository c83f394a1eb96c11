"""Semi-supervised training: from a configuration to a run directory, and tables of such runs."""
