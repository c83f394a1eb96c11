"""Files that are written whole or not at all, and read without running code from them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from idaa_lightly.errors import BusyError, FileFormatError, RunFolderError


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


@contextmanager
def claim(folder: Path, timeout: float = 5.0) -> Iterator[None]:
    """Keeps a run folder for this process, by a lock on .NAME.lock beside it, which is deleted at the end.

    The system releases the lock when the process ends, however it ends: there are no stale claims to clear away.
    Machines that share the folder need a file system with locks, such as NFS 4 or Lustre mounted with -o flock.

    Raises:
        BusyError: another process has it, and keeps it for `timeout` seconds.
        RunFolderError: the folder above cannot be written.
    """
    place = folder.absolute()
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise BusyError(f"{folder} is being run by another process: wait for it, or choose another --out") from error
    except OSError as error:
        raise RunFolderError(f"{lock.lock_file} cannot be written ({error}): choose another --out") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            os.unlink(lock.lock_file)  # a process that has it open already notices, and opens it anew
        lock.release()


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
