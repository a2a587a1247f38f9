"""Work on many pictures shared out over the processes of a run, with the results in the order of one process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from dgnet_fast.distributed import processes

Item = TypeVar("Item")
Result = TypeVar("Result")


def digest_of(names: Iterable[str]) -> str:
    """16 hexadecimal digits of a list of names, for `processes.check_same`."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def shared_out(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``function(item)`` of every item, in order and on every process, though each process computes only every N-th.

    The items are those of one process, so that the results are bit by bit what it would have. An error of one process
    is raised on all: there as it is, elsewhere as `processes.PeerLost`.
    """
    rank, size = processes.part()
    if size == 1:
        yield from map(function, items)
        return
    for first in range(0, len(items), size):
        mine, error = None, None
        if first + rank < len(items):
            try:
                mine = function(items[first + rank])
            except Exception as one:
                error = one
        found = processes.gathered((mine, error is not None))
        if error is not None:
            raise error
        if any(failed for _, failed in found):
            raise processes.PeerLost("another process of this run could not do its share")
        yield from (one for one, _ in found[: len(items) - first])  # pyright: ignore[reportReturnType]
