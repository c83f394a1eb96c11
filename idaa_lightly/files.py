"""Files that are written atomically, and read without executing code from them."""

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
    """Yield a temporary path in the directory of `path`, and rename it to `path` at the end of the with-block.

    If the block raises, `path` is unchanged and the temporary file is deleted.

    Args:
        path: File to write. Missing parent directories are created.
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
    """Lock a run directory for this process during the with-block.

    The lock file is .NAME.lock beside the directory, and is deleted on exit. The operating system releases the lock
    even if the process is killed, so there are no stale locks. Machines that share the directory need a file system
    with locks, such as NFS 4 or Lustre mounted with -o flock.

    Args:
        folder: Run directory. It need not exist.
        timeout: Seconds to wait for another process.

    Raises:
        BusyError: Another process holds the lock for longer than `timeout` seconds.
        RunFolderError: The parent directory cannot be written.
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
        with suppress(OSError):  # Windows cannot delete an open file.
            os.unlink(lock.lock_file)  # Processes that wait on it notice this and reopen it.
        lock.release()


def load_tensors(path: str | Path, expected: str) -> dict[str, Any]:
    """Load a dict of tensors from a file to the CPU, without executing code from the file.

    Args:
        path: File to read.
        expected: Expected content, for the error message, such as "a VAE".

    Raises:
        FileFormatError: The file is missing, cannot be loaded, or does not hold a dict.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} does not exist; expected {expected}") from error
    except Exception as error:  # The unpickler may raise anything on other files.
        raise FileFormatError(f"{path} is not {expected}: {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} is not {expected}: it holds a {type(content).__name__}")
    return content
