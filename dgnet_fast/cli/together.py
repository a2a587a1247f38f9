"""A command that torchrun started in several processes: one program, whose first process talks."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from dgnet_fast.config import ConfigError
from dgnet_fast.distributed.launch import launched


def in_processes(body: Callable[[], int | None], *, together: bool) -> Callable[[], int | None]:
    """The body of a command as one of the processes that the launcher started, or as it is where there is one.

    Within, only the first process writes to standard output. An error is reported by the process that meets it first,
    in one line, and ends all of them. ``together``: whether the command can run in several processes; ConfigError if not.
    """

    def run() -> int | None:
        try:
            place = launched()
            if place is None:
                return body()
            if not together:
                raise ConfigError(
                    f"torchrun started {place.size} processes, and this command runs in one; start it without torchrun"
                )
            from dgnet_fast.distributed import processes

            with processes.joined(), _results_of(place.rank):
                return body()
        except Exception:
            from dgnet_fast.distributed.processes import first_to_fail

            if not first_to_fail():
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends, which is soon
            raise

    return run


def _results_of(rank: int) -> contextlib.AbstractContextManager:
    """Standard output, for the first process alone."""
    return contextlib.nullcontext() if rank == 0 else contextlib.redirect_stdout(open(os.devnull, "w"))  # noqa: SIM115
