"""Cases in processes of their own, and what became of them.

A case runs in a fork of a process that has imported everything: 20 ms and not seconds, and it may be killed, be short of
memory or of disk. This process itself never runs a backward pass, because PyTorch's threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import fcntl
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
RAN = Path(tempfile.gettempdir()) / f"dgnet-stress-ran-{os.getpid()}"
"""The folder that code in hostile input makes, if any of it runs."""
LONGEST_GAP = 0.05
"""Seconds by which the clock of `wait` goes on at most from one look at a process to the next."""
BEYOND = 2**30
"""Bytes beyond what this process has, after which a case of hostile input counts as taking too much memory."""


@dataclass
class Result:
    """What became of a case: its exit status (negative: a signal), what it printed, its seconds on the clock of `wait`, those
    of the processor, and the bytes it took beyond its parent.
    """

    status: int
    text: str
    seconds: float
    computed: float
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
    body: Callable[[], Any],
    *,
    output: Path | int,
    file_limit: int | None = None,
    hostile_memory: bool = False,
) -> int:
    """Run ``body`` in a fork; returns the process. Its exit status is what ``body`` returns, or 70 with a traceback in
    ``output``, a file or the end of a pipe. With ``hostile_memory`` it is refused more than four times `BEYOND`, so that a
    case that asks for all memory harms nobody.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        if isinstance(output, Path):
            output = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        file = output
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


def wait(process: int, output: Path | int, *, timeout: float, kill_after: float | None = None) -> Result:
    """Wait for a process of `start`; kill it at ``timeout`` seconds, or on purpose when it has computed for ``kill_after``.
    ``output`` is the file, or the other end of the pipe.

    The seconds of ``timeout`` are those of a clock that hardly goes on while other programs keep this one from its core: it
    looks 500 times a second, and a gap counts as `LONGEST_GAP` at most.
    """
    seconds, last = 0.0, time.monotonic()
    while True:
        found, state, usage = os.wait4(process, os.WNOHANG)
        if found:
            break
        if seconds >= timeout or (kill_after is not None and _computed(process) >= kill_after):
            os.kill(process, signal.SIGKILL)
            found, state, usage = os.wait4(process, 0)
            break
        time.sleep(0.002)
        now = time.monotonic()
        seconds, last = seconds + min(now - last, LONGEST_GAP), now
    status = -os.WTERMSIG(state) if os.WIFSIGNALED(state) else os.WEXITSTATUS(state)
    if isinstance(output, int):
        text = _waiting_in(output)
    else:
        text = output.read_text(errors="replace") if output.exists() else ""
    beyond = usage.ru_maxrss * 1024 - _pages(1)
    return Result(status, text, seconds, usage.ru_utime + usage.ru_stime, max(0, beyond))


def _computed(process: int) -> float:
    """Seconds of the processor that a process of this machine has taken."""
    return time.clock_gettime(~process << 3 | 2)  # clock_getcpuclockid(3)


def _waiting_in(pipe: int) -> str:
    """What a process that has ended left in a pipe."""
    os.set_blocking(pipe, False)
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(pipe, 2**16):
            parts.append(part)
    return b"".join(parts).decode(errors="replace")


def run(
    body: Callable[[], Any],
    *,
    timeout: float = 300,
    kill_after: float | None = None,
    file_limit: int | None = None,
    hostile_memory: bool = False,
) -> Result:
    """`start` and `wait`. With a ``file_limit`` the output goes into a pipe, for which no such limit holds."""
    if file_limit is not None:
        ours, theirs = os.pipe()
        try:
            fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 2**20)  # nobody reads it before the end
            process = start(body, output=theirs, file_limit=file_limit, hostile_memory=hostile_memory)
            return wait(process, ours, timeout=timeout, kill_after=kill_after)
        finally:
            os.close(ours)
            os.close(theirs)
    with tempfile.NamedTemporaryFile(prefix="stress-") as file:
        output = Path(file.name)
        process = start(body, output=output, hostile_memory=hostile_memory)
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


def before_changes(
    folder: Path, body: Callable[[], Any], disturb: Callable[[int], None]
) -> Callable[[], Any]:
    """``body`` with ``disturb(k)`` immediately before the ``k``-th change of files below ``folder`` (from 0): a file
    opened for writing, renamed, linked, removed, or a folder made or removed.
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
            seen += 1
            disturb(seen - 1)

        sys.addaudithook(look)
        return body()

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
