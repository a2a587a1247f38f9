"""Seeds derived from one run seed, a purpose and a step: every draw of a run can be repeated on its own."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

import numpy as np
import torch

from dgnet_fast.distributed import processes


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for (run seed, purpose, step), the same on every machine."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), step]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def seed_step(seed: int, purpose: str, step: int, *, drawn_alike: bool = False) -> None:
    """Seed PyTorch's default generators for a step. Where several processes are one run each draws its own numbers,
    unless ``drawn_alike``; the first process draws what one alone would.
    """
    rank = 0 if drawn_alike else processes.rank()
    torch.manual_seed(derive_seed(seed, f"{purpose}, process {rank}" if rank else purpose, step))


@contextlib.contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Within, PyTorch's default generators may be seeded and drawn from; afterwards the caller's go on as if nothing
    had been.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
