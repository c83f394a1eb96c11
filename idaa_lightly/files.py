"""Files that are written atomically, and read without executing code from them."""

from __future__ import annotations

import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

from filelock import FileLock, Timeout

from idaa_lightly.errors import BusyError, FileFormatError, RunFolderError

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}
TEMPORARY = re.compile(r"\.idaa-tmp-(?P<owner>.+)-(?P<pid>\d+)-[0-9a-f]{8}\.[^.]+", re.DOTALL)
"""Name of a temporary file: host, process and a random number. It ends like the file that it will become."""
DAY = 24 * 60 * 60


def require_file(path: str | Path, expected: str) -> None:
    """Refuse a path that exists, but is not a regular file. Opening a FIFO or a device could block forever.

    Args:
        path: Path to check. Symbolic links are followed. It may be missing.
        expected: Expected content, for the error message, such as "a VAE".

    Raises:
        FileFormatError: The path is a directory, a FIFO, a device or a socket.
    """
    with suppress(OSError):
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind != stat.S_IFREG:
            raise FileFormatError(
                f"{path} is {KINDS.get(kind, 'a special file')}, but expected {expected}: choose another path"
            )


@contextmanager
def atomic_write(path: str | Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path in the directory of `path`, and rename it to `path` at the end of the with-block.

    The content is on disk before it is renamed. If the block raises, `path` is unchanged and the temporary file is
    deleted. If the process is killed, the next call in this directory deletes it (see `clear_leftovers`). An existing
    file keeps its mode, and a new one gets the mode that the umask allows. The temporary path has the suffix of `path`,
    because some writers choose the format by it.

    Args:
        path: File to write. Missing parent directories are created. The target of a symbolic link is replaced.
        previous: Name that the replaced file is kept under. Default: it is not kept.

    Raises:
        FileFormatError: `path` exists and is not a regular file.
        RunFolderError: The disk is full, or the file cannot be written for another reason.
    """
    target = Path(os.path.realpath(path))
    require_file(target, "a regular file or a new one")
    name = f".idaa-tmp-{_owner()}-{os.getpid()}-{secrets.token_hex(4)}{Path(path).suffix or '.tmp'}"
    temporary = target.with_name(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target.parent)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _sync(temporary)
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            if previous is not None:
                os.replace(target, previous)
        os.replace(temporary, target)
        with suppress(OSError):  # Windows cannot open directories, and some file systems cannot flush them.
            _sync(target.parent)
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written ({error.strerror or error}): make room or choose another path, then try again "
            "(a run that has begun can be resumed)"
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def is_temporary(path: Path) -> bool:
    """Return True for a temporary file of `atomic_write`, judged by its name."""
    return TEMPORARY.fullmatch(path.name) is not None


def clear_leftovers(folder: Path) -> None:
    """Delete the temporary files in a directory whose process is dead, or that are older than a day.

    Whether a process is dead is known only for this host. Nothing else is deleted, and subdirectories are not searched.

    Args:
        folder: Directory to clear. It may be missing.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = TEMPORARY.fullmatch(entry.name)
            if not found or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):  # Another process may clear the same directory.
                dead = found["owner"] == _owner() and not _alive(int(found["pid"]))
                if dead or time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY:
                    os.unlink(entry.path)


def save_tensors(content: Any, path: str | Path, *, previous: Path | None = None) -> None:
    """Save tensors with torch.save, atomically.

    Args:
        content: Object to save.
        path: File to write.
        previous: Name that the replaced file is kept under. Default: it is not kept.

    Raises:
        FileFormatError: `path` exists and is not a regular file.
        RunFolderError: The disk is full, or the file cannot be written for another reason.
    """
    import torch

    with atomic_write(path, previous=previous) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # It hides errors of the file, such as a full disk, and interruptions.
            raise error.__context__ or error from None


@contextmanager
def claim(folder: Path, timeout: float = 5.0) -> Iterator[None]:
    """Lock a run directory for this process during the with-block.

    The lock file is .NAME.lock beside the directory; see `locked`.

    Args:
        folder: Run directory. It need not exist.
        timeout: Seconds to wait for another process.

    Raises:
        BusyError: Another process holds the lock for longer than `timeout` seconds.
        RunFolderError: The parent directory cannot be written.
    """
    place = folder.absolute()
    with ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(lock_of(folder), timeout))
        except Timeout as error:
            raise BusyError(
                f"{folder} is being run by another process: wait for it, or choose another output directory"
            ) from error
        except OSError as error:
            raise RunFolderError(f"{folder} cannot be written ({error}): choose another output directory") from error
        yield


def lock_of(folder: Path) -> Path:
    """Return the lock file of a run directory."""
    place = folder.absolute()
    return place.with_name(f".{place.name}.lock")


def clear_lock(folder: Path) -> None:
    """Delete the lock file that a killed process has left beside a run directory, unless a process holds it."""
    if lock_of(folder).is_file():
        with suppress(Timeout, OSError), locked(lock_of(folder), timeout=0):
            pass


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock file during the with-block, and delete it on exit.

    The operating system releases the lock even if the process is killed, so there are no stale locks. Machines that
    share the file need a file system with locks, such as NFS 4 or Lustre mounted with -o flock.

    Args:
        path: Lock file. Its directory must exist.
        timeout: Seconds to wait for another process. -1 waits forever.

    Raises:
        Timeout: Another process holds the lock for longer than `timeout` seconds.
        OSError: The file cannot be written.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))  # FileLock would try again until the timeout.
    lock = FileLock(path)
    lock.acquire(timeout=timeout)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows cannot delete an open file.
            os.unlink(path)  # Processes that wait on it notice this and reopen it.
        lock.release()


def load_tensors(path: str | Path, expected: str) -> dict[str, Any]:
    """Load a dict of tensors from a file to the CPU, without executing code from the file.

    Args:
        path: File to read.
        expected: Expected content, for the error message, such as "a VAE".

    Raises:
        FileFormatError: The file is missing or not a regular file, cannot be loaded, or does not hold a dict.
    """
    import torch

    require_file(path, expected)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        damaged = is_zipfile(path) and _wrong_checksum(path)  # torch.load compares no checksums
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} does not exist; expected {expected}") from error
    except Exception as error:  # The unpickler may raise anything on other files.
        raise FileFormatError(f"{path} is not {expected}: {type(error).__name__}") from error
    if damaged:
        raise FileFormatError(f"{path} is not {expected}: it is damaged, because a checksum in it is wrong")
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} is not {expected}: it holds a {type(content).__name__}")
    return content


def _wrong_checksum(path: str | Path) -> bool:
    with ZipFile(path) as parts:
        return parts.testzip() is not None


def _owner() -> str:
    """Return a name of this host and of its process numbers, which differ between containers of one host."""
    numbers = Path("/proc/self/ns/pid")
    name = re.sub(r"[^\w.-]", "_", platform.node())[:64]
    return f"{name}.{numbers.stat().st_ino}" if numbers.exists() else name


def _alive(pid: int) -> bool:
    """Return True if a process of this host runs, or if that is not known."""
    if os.name == "nt":  # os.kill would end the process.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _sync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes no file that it only reads.
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
