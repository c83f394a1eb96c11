"""Built-in plugins of idaa-lightly."""
