"""From a configuration to a run folder that can be trusted."""
