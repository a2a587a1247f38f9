"""Seeds derived from one run seed, a purpose and a step: every draw of a run can be repeated on its own."""

from __future__ import annotations

import zlib

import numpy as np


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for (run seed, purpose, step), the same on every machine."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), step]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])
