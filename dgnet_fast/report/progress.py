"""Progress of long work, for whoever waits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]


def chunks_progress(what: str, stream: Any = None) -> Callable[[int, int], None]:
    """A progress callback that prints a line at each tenth of the work."""
    last = [-1]

    def show(done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth != last[0]:
            last[0] = tenth
            print(f"{what}: {done}/{total}", file=stream or sys.stderr, flush=True)

    return show
