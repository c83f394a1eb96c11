"""Files that are written whole or not at all, and read without running code from them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from idaa_lightly.errors import FileFormatError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; at the end of the with-block it takes the place of `path`.

    If the block raises, `path` stays as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix or ".tmp")
    os.close(handle)
    try:
        yield Path(name)
        Path(name).chmod(0o644)
        os.replace(name, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def load_tensors(path: str | Path, expected: str) -> dict[str, Any]:
    """Reads a file of tensors without running code from it, or says that it is not `expected`."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} does not exist; expected {expected}") from error
    except Exception as error:  # whatever the unpickler makes of a foreign file
        raise FileFormatError(f"{path} is not {expected}: {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} is not {expected}: it holds a {type(content).__name__}")
    return content
