"""The pictures of a split in chunks of limited size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from dgnet_fast.data import Split, cached_pictures, decode_split

CHUNK = 512
"""Pictures decoded at a time: 50 MB at 256×128, so that a gallery of any size fits."""


def decoded_chunks(
    split: Split,
    height: int,
    width: int,
    chunk: int = CHUNK,
    workers: int | None = None,
    cache: Path | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first index, uint8 pictures) of a split in chunks of limited size.

    With a folder `cache` of whole splits they come from their file there, which is made at once if need be.
    """
    if (kept := cached_pictures(split, height, width, cache, workers=workers)) is not None:
        for first in range(0, len(split), chunk):
            yield first, kept.tensor[first : first + chunk]
            kept.release()
        return
    for first in range(0, len(split), chunk):
        part = Slice(split, first, min(first + chunk, len(split)))
        yield first, decode_split(part, height, width, workers=workers)


def batches_of(count: int, batch: int, chunk: int = CHUNK) -> list[tuple[int, int]]:
    """(first, last + 1) of the batches in which a split of ``count`` pictures goes through a network: chunk by chunk, so
    that a chunk's last batch may be smaller.
    """
    return [
        (first, min(first + batch, start + chunk, count))
        for start in range(0, count, chunk)
        for first in range(start, min(start + chunk, count), batch)
    ]


class Slice:
    """A run of pictures of a split, for `decode_split`."""

    def __init__(self, split: Split, first: int, last: int) -> None:
        self.split, self.first, self.last = split, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def load_resized(self, index: int, height: int, width: int) -> np.ndarray:
        return self.split.load_resized(self.first + index, height, width)
