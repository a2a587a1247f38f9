"""Cases in processes of their own, and what became of them.

A case runs in a fork of a process that has imported everything: 20 ms and not seconds, and it may be killed, be short of
memory or of disk. This process itself never runs a backward pass, because PyTorch's threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HANG = 10.0
"""Seconds after which a case of hostile input counts as hanging."""
BEYOND = 2**30
"""Bytes beyond what this process has, after which a case of hostile input counts as taking too much memory."""


@dataclass
class Result:
    """What became of a case: its exit status (negative: a signal), what it printed, its seconds and the bytes it took
    beyond its parent.
    """

    status: int
    text: str
    seconds: float
    beyond: int

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text


@dataclass
class Section:
    """The counts of one row of the table, and the first failures in words."""

    name: str
    cases: int = 0
    failures: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def count(self, problem: str | None) -> None:
        """One more case, with the problem that it showed."""
        self.cases += 1
        if problem:
            self.failures.append(problem)

    def note(self, name: str) -> None:
        self.notes[name] = self.notes.get(name, 0) + 1


@contextlib.contextmanager
def limit_of(kind: int, value: int | None) -> Iterator[None]:
    if value is None:
        yield
        return
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def _pages(place: int) -> int:
    """Bytes of this process: 0 all that is mapped, 1 what is in memory."""
    return int(Path("/proc/self/statm").read_text().split()[place]) * resource.getpagesize()


def start(
    body: Callable[[], Any], *, output: Path, file_limit: int | None = None, hostile_memory: bool = False
) -> int:
    """Run ``body`` in a fork; returns the process. Its exit status is what ``body`` returns, or 70 with a traceback in
    ``output``. With ``hostile_memory`` it is refused more than four times `BEYOND`, so that a case that asks for all
    memory harms nobody.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - not pytest's
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        os.setpgid(0, 0)
        most = _pages(0) + 4 * BEYOND if hostile_memory else None
        with limit_of(resource.RLIMIT_FSIZE, file_limit), limit_of(resource.RLIMIT_AS, most):
            status = body() or 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)
    raise AssertionError


def wait(process: int, output: Path, *, timeout: float, kill_after: float | None = None) -> Result:
    """Wait for a process of `start`; kill it at ``timeout``, or on purpose at ``kill_after`` seconds."""
    begin = time.monotonic()
    end = begin + (timeout if kill_after is None else kill_after)
    while True:
        found, state, usage = os.wait4(process, os.WNOHANG)
        if found:
            break
        if time.monotonic() >= end:
            os.kill(process, signal.SIGKILL)
            found, state, usage = os.wait4(process, 0)
            break
        time.sleep(0.002)
    status = -os.WTERMSIG(state) if os.WIFSIGNALED(state) else os.WEXITSTATUS(state)
    text = output.read_text(errors="replace") if output.exists() else ""
    beyond = usage.ru_maxrss * 1024 - _pages(1)
    return Result(status, text, time.monotonic() - begin, max(0, beyond))


def run(
    body: Callable[[], Any],
    *,
    timeout: float = 300,
    kill_after: float | None = None,
    file_limit: int | None = None,
    hostile_memory: bool = False,
) -> Result:
    """`start` and `wait`."""
    with tempfile.NamedTemporaryFile(prefix="stress-") as file:
        output = Path(file.name)
        process = start(body, output=output, file_limit=file_limit, hostile_memory=hostile_memory)
        return wait(process, output, timeout=timeout, kill_after=kill_after)


def with_modules(names: Path, body: Callable[[], Any]) -> Callable[[], Any]:
    """``body``, which then leaves the names of all imported modules in a file, for `preload`."""

    def watched() -> Any:
        status = body()
        names.write_text("\n".join(sys.modules))
        return status

    return watched


def preload(names: Path) -> None:
    """Import what a case imported, so that the next ones find it: seconds of each case otherwise."""
    for name in names.read_text().split():
        if not name.startswith("__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


class Budget:
    """How long the loop of a section goes on: until ``seconds`` are over, but at least ``least`` and at most ``most``
    cases.
    """

    def __init__(self, seconds: float, least: int = 0, most: int = 10**9) -> None:
        self.until, self.least, self.most = time.monotonic() + seconds, least, most

    def allows(self, cases: int) -> bool:
        """Whether another case follows ``cases``."""
        return cases < self.least or (cases < self.most and time.monotonic() < self.until)


def killed_before(
    change: int | None, folder: Path, body: Callable[[], Any], counted: Path | None = None
) -> Callable[[], Any]:
    """``body`` with SIGKILL immediately before the ``change``-th change of files below ``folder`` (from 0): a file
    opened for writing, renamed, linked, removed, or a folder made or removed. With None it is not killed, and the number
    of changes goes to the file ``counted``.
    """
    changing = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}

    def watched() -> Any:
        seen = 0

        def look(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event == "open":
                path, mode, flags = arguments
                if not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    return
            elif event in changing:
                path = arguments[0]
            else:
                return
            if not isinstance(path, (str, bytes)) or not os.fsdecode(path).startswith(str(folder)):
                return
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        sys.addaudithook(look)
        status = body()
        if counted is not None:
            counted.write_text(str(seen))
        return status

    return watched


def hostile(result: Result) -> str | None:
    """The problem that a case of hostile input showed, or None: it must end within `HANG` seconds, without a traceback,
    by no signal, and without asking for `BEYOND` bytes more than its parent.
    """
    last = result.text.strip().splitlines()[-1:] or [""]
    if result.traceback:
        return f"traceback: {last[0][:160]}"
    if result.status < 0:
        kind = "hang" if result.seconds >= HANG else f"signal {-result.status}"
        return f"{kind} after {result.seconds:.1f} s"
    if any(text in result.text for text in ("not enough memory", "MemoryError", "allocate memory")):
        return f"asks for memory: {last[0][:160]}"
    if result.beyond > BEYOND:
        return f"{result.beyond / 1e9:.1f} GB beyond the job"
    return None
