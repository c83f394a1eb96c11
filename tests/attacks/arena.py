"""Where cases run: each in a directory of its own, in a worker process that may hang or die."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.util import get_temp_dir
from pathlib import Path
from random import Random
from typing import Any

from click.testing import CliRunner, Result

DOCUMENTED = {0, 1, 2, 75, 130, 138, 140, 143}
"""Exit codes in docs/runner.md and docs/promises.md."""
HEAVY = (
    "idaa_lightly.cli", "idaa_lightly.bench.run.train", "idaa_lightly.bench.evaluate.identity",
    "idaa_lightly.bench.evaluate.finetune", "idaa_lightly.bench.evaluate.knn", "idaa_lightly.bench.evaluate.linear",
    "idaa_lightly.bench.report.page", "idaa_lightly.bench.sweep.jobs",
)  # fmt: skip
"""Modules that the fork server imports once. Those that another version lacks are left out."""
PRELOAD = ["attacks.quiet", "attacks.arena", "attacks.images", *HEAVY]
FORKS = get_context("forkserver")
Files = dict[str, bytes]


@dataclass
class Outcome:
    """Result of one case.

    Attributes:
        kind, number: The case.
        tried: Description of the attack.
        faults: What went wrong, empty if the case was survived.
        kills: Number of processes that were killed.
        seconds: Duration.
    """

    kind: str
    number: int
    tried: str = ""
    faults: list[str] = field(default_factory=list)
    kills: int = 0
    seconds: float = 0.0


@dataclass
class Case:
    """One attack, whose working directory is `place / "here"`.

    Attributes:
        random: Source of all choices.
        place: Directory of the case.
        fixture: Directory with runs and images to copy.
        outcome: Result so far.
    """

    random: Random
    place: Path
    fixture: Path
    outcome: Outcome

    def take(self, name: str, target: str | None = None) -> Path:
        """Copy a file or directory of the fixture into the working directory."""
        source, copy = self.fixture / name, Path(target or name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        return Path((shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy))

    def expect(self, met: bool, fault: str) -> None:
        """Note a fault unless an expectation is met."""
        if not met:
            self.outcome.faults.append(fault)

    def bench(self, *arguments: object, kept: tuple[str, ...] = (), writes: bool = True) -> Result:
        """Call the command line in this process, and judge how it ended and what it wrote.

        Args:
            arguments: Arguments of `idaa-bench`.
            kept: Paths in the working directory whose files must stay as they are.
            writes: False if the command may write nothing at all.
        """
        from idaa_lightly.cli import main

        texts = [str(argument) for argument in arguments]
        before, WRITTEN[:] = files(Path()), []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = CliRunner().invoke(main, texts, prog_name="idaa-bench")
        shown = ascii(" ".join(texts))
        for fault in faults_of(result):
            self.expect(False, f"{fault} after {shown}")
        after = files(Path())
        lost = [path for path in before if path.startswith(kept) and before[path] != after.get(path)] if kept else []
        self.expect(not lost, f"changed {lost[:3]} by {shown}")
        left = [path for path in after if leftover(Path(path)) and path not in before]
        self.expect(not left, f"left {left[:3]} behind after {shown}")
        wrote = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        self.expect(writes or not wrote, f"wrote {wrote[:3]} by {shown}")
        # "--out ../x" asks for a file in `place`, and looks after that directory itself. torch makes a temporary
        # directory to read an old format, such as zeros seem to be, and deletes it.
        away = [path for path in WRITTEN if not f"{path}{os.sep}".startswith(f"{self.place}{os.sep}")]
        temporary = tempfile.gettempdir() + os.sep
        away = [path for path in away if os.path.lexists(path) or not path.startswith(temporary)]
        self.expect(not away, f"wrote outside its directory: {away[:3]} by {shown}")
        return result


def faults_of(result: Result) -> Iterator[str]:
    """Yield what is wrong with the end of a command: a traceback, an unknown exit code, or not one sentence."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        last = traceback.extract_tb(result.exception.__traceback__)[-1]
        text = f"{type(result.exception).__name__}: {str(result.exception).partition(chr(10))[0]:.200}"
        yield f"traceback ({text}, {Path(last.filename).name}:{last.lineno})"
    elif "Traceback (most recent call last)" in result.output:
        yield "traceback in the output"
    elif result.exit_code not in DOCUMENTED:
        yield f"undocumented exit code {result.exit_code}"
    elif result.exit_code in (1, 2, 75):
        lines = result.stderr.splitlines()
        errors = [line for line in lines if line.startswith("Error: ")]
        if len(errors) != 1 or (not lines[0].startswith("Usage: ") and lines[-1] != errors[0]):
            yield f"not one sentence: {result.stderr[-200:]!a}"


def files(folder: Path) -> Files:
    """Return the files below a directory with their content, and other kinds of files with their type."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            mode = path.lstat().st_mode
            regular = stat.S_ISREG(mode)
            found[str(path)] = path.read_bytes() if regular else stat.S_IFMT(mode).to_bytes(4, "big")
    return found


def leftover(path: Path) -> bool:
    """Return True for a temporary file or a lock of ours."""
    return path.name.startswith(".") and (path.suffix == ".lock" or "tmp" in path.name)


WRITTEN: list[str] = []
"""Paths that Python code of this process has opened for writing, made, renamed or deleted."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note writes, as an audit hook."""
    if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        path = os.fsdecode(arguments[0])
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.truncate") and isinstance(arguments[0], str | bytes):
        path = os.fsdecode(arguments[1] if event == "os.rename" else arguments[0])
    else:
        return
    path = os.path.abspath(path)
    if not f"{path}/".startswith(("/dev/", "/proc/", "/sys/")) and "__pycache__" not in path:
        WRITTEN.append(path)


def attempt(kind: str, number: int, seed: int, root: Path, attack: Callable[[Case], None]) -> Outcome:
    """Run one case in a directory of its own below `root`, and delete that directory."""
    place, start, before, there = root / f"{kind}-{number}", time.monotonic(), dict(os.environ), os.getcwd()
    shutil.rmtree(place, ignore_errors=True)
    for name in ("here", "cache", "home", "tmp"):
        (place / name).mkdir(parents=True)
    case = Case(Random(f"{seed} {kind} {number}"), place, root / "fixture", Outcome(kind, number))
    os.environ |= {
        "IDAA_LIGHTLY_CACHE": str(place / "cache"),
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
    }
    os.chdir(place / "here")
    try:
        attack(case)
    except Exception:  # a fault of the attack, or a file that it needed and that is gone
        case.expect(False, f"the attack failed: {' '.join(traceback.format_exc().split())[-600:]}")
    finally:
        os.chdir(there)
        os.environ.clear()
        os.environ |= before
        if not os.environ.get("ATTACK_KEEP"):
            shutil.rmtree(place, ignore_errors=True)
    case.outcome.seconds = time.monotonic() - start
    return case.outcome


class Worker:
    """Process that runs one case after the other.

    Args:
        root: Directory of the cases.
        kinds: Attacks by name.
    """

    def __init__(self, root: Path, kinds: Mapping[str, Callable[[Case], None]]) -> None:
        self.pipe, theirs = FORKS.Pipe()
        self.process = FORKS.Process(target=_serve, args=(theirs, root, kinds))
        self.process.start()
        theirs.close()
        self.case, self.until = ("", 0), 0.0

    def start(self, kind: str, number: int, seed: int, limit: float) -> None:
        """Start a case that may take `limit` seconds."""
        self.case, self.until = (kind, number), time.monotonic() + limit
        self.pipe.send((kind, number, seed))

    def outcome(self) -> Outcome | None:
        """Return the outcome of the case if it has ended, hangs or has crashed. The last two leave no worker."""
        limit = time.monotonic() > self.until
        if not self.pipe.poll() and not limit and self.process.is_alive():
            return None
        with suppress(EOFError, ConnectionError):
            if self.pipe.poll():
                return self.pipe.recv()  # type: ignore[no-any-return]
        self.stop()
        fault = "hang: the limit of time is over" if limit else f"crash: exit code {self.process.exitcode}"
        return Outcome(*self.case, faults=[fault])

    def stop(self) -> None:
        """End the process, or kill it if it hangs."""
        self.pipe.close()
        self.process.join(0 if self.until < time.monotonic() else 5)
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, root: Path, kinds: Mapping[str, Callable[[Case], None]]) -> None:
    import torch

    torch.set_num_threads(1)
    FORKS.set_forkserver_preload(PRELOAD)  # A worker has a fork server of its own.
    get_temp_dir()  # outside the directories of the cases
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # C++ libraries write to them.
        os.dup2(silent, stream)
    sys.addaudithook(_watch)
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            kind, number, seed = pipe.recv()
            pipe.send(attempt(kind, number, seed, root, kinds[kind]))


class Command:
    """Command line in a process of its own, with its own session, which can be killed.

    Args:
        arguments: Arguments of `idaa-bench`.
        log: File that the output is written to.
    """

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log, self.arguments = log, arguments
        self.process = FORKS.Process(target=_command, args=(arguments, Path.cwd(), log.absolute(), dict(os.environ)))
        self.process.start()

    def kill(self, *, group: bool = True) -> bool:
        """Kill the process, or its whole session. Return False if it had ended before."""
        assert self.process.pid
        with suppress(ProcessLookupError):
            if group:  # The process itself follows, because it may not have its session yet.
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def end(self, limit: float = 120.0) -> str | None:
        """Wait for the end. Return what is wrong with it, or None."""
        self.process.join(limit)
        if self.process.is_alive():
            self.kill()
            return f"hang: {self.arguments[0]} did not end within {limit:.0f} s"
        text = self.log.read_text(errors="replace")
        if self.process.exitcode or "Traceback" in text:
            return f"{self.arguments[0]} ended with {self.process.exitcode}: {text[-300:]!a}"
        return None


def _command(arguments: list[str], place: Path, log: Path, environment: dict[str, str]) -> None:
    with suppress(PermissionError):
        os.setsid()
    os.chdir(place)
    os.environ.clear()
    os.environ |= environment
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    from idaa_lightly.cli import main

    main(arguments, prog_name="idaa-bench")


@contextmanager
def limit_of_files(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes in the with-block, as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
