"""Exceptions that idaa-lightly raises on purpose.

A message says what was got, what was expected and what to do. The command line prints it as one sentence and exits with
`exit_code`. Library users catch `IDAAError`, or the built-in exception that the class also derives from.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class IDAAError(Exception):
    """Base of all errors of this package."""

    exit_code = 1


class UsageError(IDAAError, ValueError):
    """An argument or option has a value that cannot be used."""

    exit_code = 2


class PluginError(IDAAError):
    """A plugin is unknown, ambiguous or fails to import."""

    exit_code = 2


class MissingExtraError(IDAAError, ImportError):
    """A package of an optional extra is not installed."""

    exit_code = 2


class ModelError(IDAAError, TypeError):
    """A model is not in the state that the call needs."""


class DataError(IDAAError, ValueError):
    """A data set cannot be read, has the wrong form or is too small for the task."""


class FileFormatError(IDAAError, ValueError):
    """A file or directory is not what was expected: a checkpoint, a VAE, features, a run directory."""


class RunFolderError(IDAAError):
    """An output directory cannot be used, for example because existing files would be lost."""


class BusyError(RunFolderError):
    """Another process is using the run directory."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h, which tells the caller to try again later.


class SweepError(IDAAError):
    """Some runs of a sweep failed. The others are complete."""


class RankError(IDAAError):
    """A process of a run on several devices failed, or lost the connection to another one.

    Args:
        message: What happened.
        exit_code: Exit code of the command.
    """

    exit_code = 76  # EX_PROTOCOL of sysexits.h

    def __init__(self, message: str, exit_code: int = exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MachineError(IDAAError, OSError):
    """The operating system refused a file, or the memory does not suffice."""


class NonFiniteError(IDAAError, ArithmeticError):
    """Features or a loss contain NaN or infinity."""


def require_extra(package: str, extra: str, purpose: str) -> ModuleType:
    """Import a package that only an optional extra installs.

    Args:
        package: Name of the package and of its top-level module.
        extra: Extra of idaa-lightly that installs the package, such as "vision".
        purpose: Feature that needs the package. It ends the message.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # The package is installed, but one of its dependencies is not.
            raise
        raise MissingExtraError(
            f'{package} is not installed: pip install "idaa-lightly[{extra}]" to use {purpose}', name=package
        ) from None


def suggestion(got: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" with the closest known name, or an empty string if none is close.

    Args:
        got: Unknown name.
        known: Known names.
    """
    close = difflib.get_close_matches(got, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
