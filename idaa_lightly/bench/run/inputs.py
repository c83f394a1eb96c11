"""Inputs that a run started with: images, plugin files, and files that its options name, such as a VAE."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.errors import DataError
from idaa_lightly.registry import KINDS, added_files, entries, sources


class SameInputs(pl.Callback):
    """Callback that keeps hashes of a run's inputs in checkpoints.

    Args:
        config: Resolved configuration of the run.
        name: Name of its data set.
        fingerprint: Hash of its training images.
    """

    def __init__(self, config: RunConfig, name: str, fingerprint: str) -> None:
        self.inputs = {f"the images of {name}": fingerprint, **_files(config)}

    def state_dict(self) -> dict[str, Any]:
        """Return the hashes for the checkpoint."""
        return {"inputs": self.inputs}

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Check that a run is resumed with the inputs that it was begun with.

        Args:
            checkpoint: Checkpoint to resume. It may be empty, or older than this callback.

        Raises:
            DataError: An input has changed.
        """
        callbacks = checkpoint.get("callbacks")
        state = callbacks.get(self.state_key) if isinstance(callbacks, dict) else None
        kept = state.get("inputs") if isinstance(state, dict) else None
        if not isinstance(kept, dict):
            return
        for name, digest in self.inputs.items():
            if kept.get(name, digest) != digest:
                raise DataError(
                    f"{name} changed after this run was begun: restore what was there, or start anew with another --out"
                )


def _files(config: RunConfig) -> dict[str, str]:
    """Return the hashes of the plugin files that a run uses, and of the files and the run that its options name."""
    options = config.to_dict()
    added = {path.name for path in added_files()}
    plugins = zip(KINDS, (config.method, config.aug, config.backbone or ""), strict=True)
    used = [entry for kind, name in plugins for entry in entries(kind, name) if entry.distribution in added]
    named = [Path(options[name]) for name in ("weights", "run") if name in options]
    values = [Path(value) for part in config.set.values() for value in part.values() if isinstance(value, str)]
    paths = [path / "backbone.pt" if path.is_dir() else path for path in named] + [
        path for path in values if path.suffix
    ]
    modules = {f"the plugin {name}": digest for name, digest in sources().items() if name not in added}
    return (
        modules
        | {f"the plugin file {entry.distribution}": entry.version for entry in used}
        | {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}
    )
