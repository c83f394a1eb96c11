"""Progress bars for long tasks."""

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
