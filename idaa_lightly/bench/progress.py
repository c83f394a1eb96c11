"""Progress bars of long work."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm


def progress(title: str, total: int) -> Callable[[str], None]:
    """Start a progress bar, which is drawn on a terminal only.

    Args:
        title: Text in front of the bar.
        total: Number of steps.

    Returns:
        A function to call after each step with a text that is shown behind the bar.
    """
    bar = tqdm(total=total, desc=title, leave=False, disable=None)

    def step(text: str) -> None:
        bar.set_postfix_str(text, refresh=False)
        bar.update()
        if bar.n >= total:
            bar.close()

    return step
