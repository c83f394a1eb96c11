"""Progress bars for long tasks, and numbers in messages."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm


def progress(title: str, total: int) -> Callable[[str], None]:
    """Start a progress bar. It is drawn only on a terminal.

    Args:
        title: Text before the bar.
        total: Number of steps.

    Returns:
        A function to call after each step. Its argument is a text to show after the bar.
    """
    bar = tqdm(total=total, desc=title, leave=False, disable=None)

    def step(text: str) -> None:
        bar.set_postfix_str(text, refresh=False)
        bar.update()
        if bar.n >= total:
            bar.close()

    return step


def quantity(number: int, thing: str) -> str:
    """Return a number with the noun that it counts, such as "1 epoch" or "2 epochs".

    Args:
        number: Number of things.
        thing: Noun in the singular, whose plural ends in s.
    """
    return f"{number} {thing}{'s' * (number != 1)}"
