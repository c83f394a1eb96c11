"""Cache of fitted VAEs on disk, which concurrent processes share."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from idaa_lightly.files import atomic_write, clear_leftovers, locked
from idaa_lightly.vae import VAE

log = logging.getLogger(__name__)


def cached_vae(key: dict[str, object], directory: Path, fit: Callable[[], VAE]) -> VAE:
    """Return the VAE that is cached under a key, or fit and cache one.

    Concurrent processes with one key wait for each other, so that only one of them fits the VAE. A cached file whose
    key or checksum differs from its description is not used: this is logged, and the VAE is fitted again.

    Args:
        key: Everything that the VAE depends on, as JSON values: data, transform, architecture, beta, epochs, seed.
        directory: Directory of the cache. `key` and the SHA-256 of the file are written beside each VAE.
        fit: Function that returns a fitted VAE. Called only if none is cached.
    """
    text = json.dumps(key, sort_keys=True)
    path = directory / f"vae-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"
    note = path.with_suffix(".json")
    directory.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        clear_leftovers(directory)
        fault = _fault(path, note, json.loads(text))
        if fault and path.exists():
            log.info(f"The cached VAE {path} is not used, because {fault}. It is fitted again and replaced.")
        if fault:
            fit().save(path)
            with atomic_write(note) as temporary:
                temporary.write_text(json.dumps({"key": key, "sha256": _sha256(path)}, indent=2, sort_keys=True))
        return VAE.load(path)


def _fault(path: Path, note: Path, key: dict[str, object]) -> str | None:
    """Return why a cached VAE cannot be trusted, in words, or None if it can."""
    if not (path.is_file() and note.is_file()):
        return f"it is not a regular file with {note.name} beside it"
    try:
        kept = json.loads(note.read_text())
    except ValueError:
        return f"{note.name} beside it is damaged"
    if not isinstance(kept, dict) or kept.get("key") != key:
        return f"{note.name} beside it names other settings"
    return None if kept.get("sha256") == _sha256(path) else "its checksum is wrong"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
