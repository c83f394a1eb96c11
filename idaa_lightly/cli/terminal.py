"""What commands share to print: the console, log messages, and tables of accuracies."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from idaa_lightly.bench.evaluate.store import Family

Value = Callable[[dict[str, Any]], float | None]
"""From a result to a share in [0, 1] that is shown as percent, or None."""


def console() -> Console:
    """Return the console of this call of the command line."""
    found: Console = click.get_current_context().find_root().obj
    return found


class Messages(logging.Handler):
    """Prints log messages to a console as they are: a path may hold brackets, and is not wrapped."""

    def __init__(self, terminal: Console) -> None:
        super().__init__()
        self.terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        self.terminal.print(self.format(record), highlight=False, soft_wrap=True)


@contextmanager
def messages_on(terminal: Console) -> Iterator[None]:
    """Print the package's log messages inside the with-block. Of DDP's processes, only the first one prints."""
    logger, handler = logging.getLogger("idaa_lightly"), Messages(terminal)
    level = logger.level
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def accuracy_table(families: list[Family], names: str, columns: Mapping[str, Value], caption: str) -> Table:
    """Return a row per result, and mean ± standard deviation below those of runs that differ in their seed only."""
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


def mean_label(family: Family) -> str:
    """Return the label of the row of means of several runs."""
    assert family.group is not None
    config = family.group.config
    return f"{config.method} × {config.aug}, mean ± std of {len(family.results)}"
