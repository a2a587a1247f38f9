"""Which of several processes this is, as the launcher's environment variables say (torchrun sets them). Needs no torch."""

from __future__ import annotations

import os
from typing import NamedTuple

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What the launcher sets for each process."""
TIMEOUT = "DGNET_FAST_TIMEOUT"
"""Seconds after which a process gives up on another that does not answer; default `PATIENCE`."""
PATIENCE = 600.0


class Place(NamedTuple):
    """A process among several: ``rank`` of ``size``, ``local_rank`` on its machine, ``timeout`` in seconds."""

    rank: int
    local_rank: int
    size: int
    timeout: float


def launched() -> Place | None:
    """This process's place where a launcher started more than one, else None.

    Raises:
        ValueError: WORLD_SIZE says that there are several, and another variable is missing or makes no sense.
    """
    size = _whole("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        return None
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE is {size} and {', '.join(missing)} is not set; start the processes with torchrun, which sets "
            + ", ".join(VARIABLES)
        )
    rank, local = _whole("RANK"), _whole("LOCAL_RANK")
    if not 0 <= rank < size:
        raise ValueError(f"RANK is {rank}; with WORLD_SIZE {size} allowed: 0 to {size - 1}")
    try:
        timeout = float(os.environ.get(TIMEOUT, PATIENCE))
    except ValueError:
        timeout = -1.0
    if not 0 < timeout < float("inf"):
        raise ValueError(f"{TIMEOUT} is {os.environ[TIMEOUT]!r}; allowed: a number of seconds above 0")
    return Place(rank, local, size, timeout)


def rank_said() -> int:
    """The rank that the environment gives, 0 where it gives none: for messages before the processes have met."""
    text = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    return int(text) if text.isdecimal() else 0


def restarted() -> bool:
    """Whether torchrun started the processes again after a failure (``--max-restarts``)."""
    return launched() is not None and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _whole(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}; allowed: a whole number")
    return int(text)
