"""Progress of long work: a bar on a terminal, and lines of the log elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from tqdm import tqdm

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""A function that is called with how much is done, and the total."""


def on_terminal() -> bool:
    """Whether a bar can be drawn: the log is shown, and standard error is a terminal."""
    return logger.isEnabledFor(logging.INFO) and sys.stderr is not None and sys.stderr.isatty()


def progress(what: str) -> Progress:
    """A callback that shows how far ``what`` has come: a bar on a terminal, elsewhere a line of the log at each tenth.

    A program that does not show the log of this package (logger ``dgnet_fast``, level INFO) sees nothing.
    """
    bars: list[tqdm] = []
    last = -1

    def show(done: int, total: int) -> None:
        nonlocal last
        if on_terminal():
            if not bars:
                bars.append(tqdm(total=total, desc=what, leave=False, dynamic_ncols=True))
            bars[0].update(done - bars[0].n)
            if done >= total:
                bars.pop().close()
            return
        tenth = 10 * done // max(total, 1)
        if tenth != last:
            last = tenth
            logger.info("%s: %d/%d", what, done, total)

    return show
