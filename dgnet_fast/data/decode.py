"""Decodes a whole split once, to uint8 at the network's size."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from dgnet_fast.data.base import Split


def decode_split(
    split: Split,
    height: int,
    width: int,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """All pictures of `split` at the wanted size, resized bicubically: uint8 (N, 3, height, width) RGB on the
    CPU.

    The result is the only copy: Market-1501's training split takes 1.27 GB at 256x128. `workers` threads
    (default: one per core, at most 16) decode; `progress(done, total)` is called from this thread. An
    unreadable picture raises ValueError with its path.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be positive, got {height} and {width}")
    workers = min(16, os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    pictures = torch.empty((len(split), 3, height, width), dtype=torch.uint8)
    target = pictures.numpy()

    def decode(index: int) -> None:
        target[index] = np.moveaxis(split.load_resized(index, height, width), -1, 0)

    pool = ThreadPoolExecutor(workers)
    try:
        for done, _ in enumerate(pool.map(decode, range(len(split))), start=1):
            if progress is not None:
                progress(done, len(split))
    finally:
        pool.shutdown(cancel_futures=True)  # an error must not wait for the rest
    return pictures
