"""Output that commands share: the console, log messages and tables of accuracies."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Column, Table

from idaa_lightly.bench.ranks import is_first_process
from idaa_lightly.errors import IDAAError, MachineError, RankError, UsageError

if TYPE_CHECKING:
    from idaa_lightly.bench.evaluate.store import Family

ARGUMENTS = "idaa_lightly.arguments"
"""Key of `click.Context.meta` for the arguments of this call of the command line."""
Value = Callable[[dict[str, Any]], float | None]
"""Function from a result to a number in [0, 1], shown in percent, or to None for an empty cell."""


def console() -> Console:
    """Return the console of this call of the command line."""
    found: Console = click.get_current_context().find_root().obj
    return found


class Messages(logging.Handler):
    """Log handler that prints to a console, without wrapping lines or highlighting.

    Args:
        terminal: Console to print to.
    """

    def __init__(self, terminal: Console) -> None:
        super().__init__()
        self.terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log message."""
        self.terminal.print(self.format(record), highlight=False, soft_wrap=True)


@contextmanager
def messages_on(terminal: Console) -> Iterator[None]:
    """Print the package's log messages inside the with-block. With DDP, only the first process prints them.

    Args:
        terminal: Console to print to.
    """
    logger, handler = logging.getLogger("idaa_lightly"), Messages(terminal)
    level = logger.level
    if is_first_process():
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "calculation overflowed", "numel: integer")
"""Parts of the messages of torch's RuntimeErrors if a tensor is too large."""
LOST = ("gloo", "NCCL", "TCPStore")
"""Parts of the messages of torch's RuntimeErrors if another process of a run on several devices is gone."""


@contextmanager
def machine_errors() -> Iterator[None]:
    """Turn unexpected errors of files and memory into a `MachineError` with a message of one sentence.

    Raises:
        MachineError: The with-block raised an OSError, a MemoryError, or a RuntimeError that torch raises for them.
        RankError: It raised the RuntimeError that torch raises if another process of a run on several devices is gone.
        UsageError: A text cannot be encoded, or a number is too large for torch.
    """
    try:
        yield
    except (IDAAError, BrokenPipeError):  # Click handles broken pipes.
        raise
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{error.object[error.start : error.end]!r} is no character of {error.encoding}, but a name, an option or "
            "a file has it: rename it, or set LC_ALL=C.UTF-8"
        ) from error
    except TypeError as error:  # Torch raises it for sizes beyond 64 bits.
        if "Overflow when unpacking" not in str(error):
            raise
        raise UsageError("a size is too large for numbers of 64 bits: lower the options that set one") from error
    except (OSError, MemoryError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        if isinstance(error, OSError) or "PytorchStreamWriter" in first or "Symlink loop" in first:
            place = getattr(error, "filename", None) or "a file"
            reason = getattr(error, "strerror", None) or first
            raise MachineError(
                f"{place} cannot be read or written ({reason}): check the path, its permissions and the free space"
            ) from error
        if "without overflow" in first:
            raise UsageError(
                f"an option is too large for numbers of 32 bits ({first}): lower the learning rate, eps or a weight"
            ) from error
        if isinstance(error, MemoryError) or any(part in first for part in NO_MEMORY):
            asked = re.search(r"tried to allocate [\d.]+ \w+", first, re.IGNORECASE)
            reason = (asked[0] if asked else first).lower() or "out of memory"
            raise MachineError(
                f"the memory does not suffice ({reason}): lower the batch size, the image size or the options that set "
                "the size of a network"
            ) from error
        if any(part in first for part in LOST):
            raise RankError(
                f"rank {os.environ.get('RANK') or os.environ.get('LOCAL_RANK', '0')} lost the connection to another "
                "rank, which failed or was killed: read the messages of the other ranks, then repeat the command with "
                "--resume to continue after the last finished epoch"
            ) from error
        raise


def accuracy_table(families: list[Family], names: str, columns: Mapping[str, Value], caption: str) -> Table:
    """Return a table with a row per result, and mean ± standard deviation over runs that differ only in their seed.

    Args:
        families: Evaluated runs and other targets.
        names: Title of the column with the names of the results.
        columns: Values to show, by title of their column.
        caption: Text below the table.
    """
    table = Table(Column("target", overflow="fold"), names, *columns, caption=caption)
    for family in families:
        for name in next(iter(family.results.values())):
            for target, results in family.results.items():
                values = [value(results[name]) for value in columns.values()]
                table.add_row(str(target), name, *("" if v is None else f"{100 * v:.2f}" for v in values))
            if len(family.results) > 1:
                spreads = [family.spread(name, value) for value in columns.values()]
                table.add_row(
                    mean_label(family),
                    name,
                    *(f"{100 * spread[0]:.2f} ± {100 * spread[1]:.2f}" if spread else "" for spread in spreads),
                )
            table.add_section()
    return table


def of_layer(given: Mapping[str, Any]) -> str:
    """Return the beginning of a caption that names the layer of --layer, if there is one."""
    return f"outputs of {given['layer']}, " if given["layer"] else ""


def mean_label(family: Family) -> str:
    """Return the label of the row with the mean over several runs."""
    assert family.group is not None
    config = family.group.config
    return f"{config.method} × {config.aug}, mean ± std of {len(family.results)}"
