"""Every exception that idaa-lightly raises on purpose.

A message says what was got, what was expected and what to do. The command line prints it as one sentence and
exits with `exit_code`; library users catch `IDAAError`, or the built-in type beside it.
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
    """A data set cannot be read or is too small for the task."""


class FileFormatError(IDAAError, ValueError):
    """A file is not what it was given as: a checkpoint, a VAE, features, a run folder."""


class RunFolderError(IDAAError):
    """An output folder already holds something that would be lost."""


class BusyError(RunFolderError):
    """Another process is working on the run folder at this moment."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class SweepError(IDAAError):
    """Some runs of a sweep failed; the others are done."""


class NonFiniteError(IDAAError, ArithmeticError):
    """Features or a loss hold NaN or infinity."""


def require_extra(package: str, extra: str, purpose: str) -> ModuleType:
    """Import a package that only an optional extra installs.

    Args:
        package: Name of the package and of its top-level module.
        extra: Extra of idaa-lightly that installs it, such as "vision".
        purpose: What needs the package. Ends the message.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # the package is there, but one of its own dependencies is not
            raise
        raise MissingExtraError(
            f'{package} is not installed: pip install "idaa-lightly[{extra}]" to use {purpose}', name=package
        ) from None


def suggestion(got: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' where something known is close, else nothing."""
    close = difflib.get_close_matches(got, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
