"""What torch.compile is at work on, said in the log as it begins and ends: a first step of minutes is not silent, and the time
can be left out of the rate that a run shows.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)


class Compiling:
    """Follows the compilations of this process, forward and backward, from `watch` on.

    ``clock`` gives seconds. PyTorch tells of each through `torch._dynamo.callback`; where it has no such thing, nothing is
    said and no time is known.
    """

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock, self._parts, self._watching = clock, ["a function"], False
        self._began, self._seconds = 0.0, 0.0

    def watch(self) -> None:
        """Begin to follow; a second call does nothing."""
        if self._watching:
            return
        self._watching = True
        with contextlib.suppress(ImportError, AttributeError):
            from torch._dynamo.callback import callback_handler

            callback_handler.register_start_callback(self.begins)
            callback_handler.register_end_callback(self.ends)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within, what is compiled goes by this name."""
        self._parts.append(name)
        try:
            yield
        finally:
            self._parts.pop()

    def begins(self, about: Any) -> None:
        self._began = self._clock()
        logger.info("torch.compile: %s ...", self._name(about))

    def ends(self, about: Any) -> None:
        seconds = self._clock() - self._began
        self._seconds += seconds
        logger.info("torch.compile: %s took %.1f s", self._name(about), seconds)

    def _name(self, about: Any) -> str:
        backward = getattr(about.callback_trigger, "name", "") == "LAZY_BACKWARD"
        return f"{self._parts[-1]}, backward" if backward else self._parts[-1]

    def taken(self) -> float:
        """Seconds that compilations took since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


COMPILING = Compiling()
