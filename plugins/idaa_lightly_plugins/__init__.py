"""The plugins that come with idaa-lightly."""
