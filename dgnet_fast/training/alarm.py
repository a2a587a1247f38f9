"""Warns that a run has begun to diverge while its losses are still finite: which loss, since when, and what to lower.

The level of a loss is the median of its last logged values. There is a warning if the level had fallen to half of its
first value or less and has then lost a certain share of this gain, or if it is twice its first value. Both are far
beyond the noise of a healthy run, and they come long before a loss is NaN, if it ever is: a run whose E_a had left its
optimum went on for 2 000 steps with an identity loss of 5 to 20 times that of guessing.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

WINDOW = 9
"""Number of logged values whose median is a level."""


class Watched(NamedTuple):
    """A loss to watch: the ``share`` of its gain that it may lose again, and the ``advice`` if it has lost more."""

    share: float
    advice: str


E_A = "lower --lr2"
WATCHED = {
    "recon_x": Watched(0.5, "lower --lr-g, or --gan-w"),
    "recon_xp": Watched(0.5, "lower --lr-g, or --gan-w"),
    # not `id`: it takes in the fine-grained share as teacher_w rises
    "pid": Watched(0.5, E_A),
    # D's loss rises again as G gets good: only what is worse than it ever was
    "dis": Watched(2.0, "lower --lr-d"),
}
"""Losses that fall in a healthy run. Losses whose weights rise later, and those on which G and D work against each
other, need not fall.
"""


class DivergenceAlarm:
    """Watches the logged values. `observe` returns the warnings, one for each time that a loss diverges.

    ``window``: see `WINDOW`.
    """

    def __init__(self, watched: Mapping[str, Watched] = WATCHED, *, window: int = WINDOW) -> None:
        self._losses = {name: _Loss(one, window) for name, one in watched.items()}

    def observe(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        """Take the values logged at ``step``, and return the warnings. Values that are not finite are ignored; `Guard`
        handles them.
        """
        texts = []
        for name, loss in self._losses.items():
            value = scalars.get(name)
            if value is None or value != value or abs(value) == float("inf"):
                continue
            if (text := loss.observe(step, value)) is not None:
                texts.append(f"{name} {text}")
        return texts


class _Loss:
    def __init__(self, watched: Watched, window: int) -> None:
        self.watched, self.window = watched, window
        self.values: deque[tuple[int, float]] = deque(maxlen=window)
        self.first: float | None = None
        self.best, self.best_step = float("inf"), 0
        self.above, self.since = 0, 0

    def observe(self, step: int, value: float) -> str | None:
        self.values.append((step, value))
        if len(self.values) < self.window:
            return None
        level = statistics.median(v for _, v in self.values)
        middle = self.values[len(self.values) // 2][0]
        if self.first is None:
            self.first = level
        if level < self.best:
            self.best, self.best_step = level, middle
        limit = 2 * self.first
        if self.best <= 0.5 * self.first:
            limit = self.best + self.watched.share * (self.first - self.best)
        if level <= limit:
            self.above = 0
            return None
        self.above += 1
        if self.above == 1:
            self.since = next(s for s, v in self.values if v > limit)
        if self.above != self.values.maxlen:  # said once, when a whole window of levels stood there
            return None
        return (
            f"diverges since about step {self.since}: {level:.3g} now, {self.best:.3g} at its best around step "
            f"{self.best_step}, {self.first:.3g} at the start; {self.watched.advice} (an earlier checkpoint may be better)"
        )
