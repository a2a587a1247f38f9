"""How figures are measured: the clock of timed calls, the machine's ceilings, peak memory.

CPU: wall clock of a call, nothing flushed between rounds (at these shapes tensors partly stay in the last-level
cache, as they do in a training step). CUDA: events around the call; before each round 1 GiB is written, which is
more than the L2 cache, so that the call finds its inputs in memory, and which takes a third of a millisecond on an
H100, so that the host is ahead by then and its launches are not measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dgnet_fast.ops.registry import cpu_multiplies_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
FLUSH_BYTES = 2**30  # an H100's L2 cache is 50 MB
Call = Callable[[], object]


class Stopwatch:
    """Seconds spent inside measured calls. pytest-benchmark reads it as its timer, so that what it records is
    what was measured, whatever the clock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> float:
        return self.seconds


STOPWATCH = Stopwatch()
_flush: list[Tensor] = []


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Call, device: str) -> float:
    """Seconds that one call takes on the device."""
    if device == "cuda":
        if not _flush:
            _flush.append(torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device))
        _flush[0].zero_()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Effort:
    """How long a row may take: warm-up rounds, seconds of rounds, the least and most rounds, and the seconds
    after which fewer than the least will do."""

    warmups: int
    seconds: float
    least: int
    most: int
    limit: float = float("inf")

    def rounds(self, one: float) -> int:
        wanted = min(max(self.seconds / max(one, 1e-9), self.least), self.most)
        return max(1, int(min(wanted, self.limit / max(one, 1e-9))))


QUICK = Effort(2, 0.25, 3, 15, limit=10.0)  # of the warm-ups the first compiles and maps memory
FULL = Effort(2, 1.5, 5, 50, limit=60.0)
SLOW = 5.0  # seconds of a call for which one warm-up is enough


def run(benchmark, clock: Callable[[], float], effort: Effort, setup: Call | None = None) -> list[float]:
    """Warm up, choose the number of rounds by the last warm-up, run them under pytest-benchmark.

    `clock` makes the call and says how many seconds it took. Returns the seconds of each round.
    """
    prepare = setup or (lambda: None)
    for _ in range(effort.warmups):
        prepare()
        one = clock()
        if one > SLOW:
            break
    seconds: list[float] = []

    def target() -> None:
        seconds.append(clock())
        STOPWATCH.seconds += seconds[-1]

    def before_target() -> None:  # pytest-benchmark would take what a setup returns for arguments
        prepare()

    benchmark.pedantic(target, setup=before_target, rounds=effort.rounds(one), warmup_rounds=0)
    return seconds


def emulates_bf16(device: str) -> bool:
    return device == "cpu" and not cpu_multiplies_bf16()


def skip_emulated_bf16(device: str) -> None:
    """Skip where bf16 products are emulated, at a hundredth of float32's speed on AVX2."""
    if emulates_bf16(device):
        pytest.skip(
            "this CPU has no bf16 arithmetic: PyTorch's emulation takes seconds a call, measured with --full"
        )


@dataclass
class Ceilings:
    """What the machine reaches in this very run: copy bandwidth in bytes/s (read plus written), matrix products
    in FLOP/s by dtype; both the best of several rounds."""

    device: str
    values: dict[str, float] = field(default_factory=dict)

    def copy(self) -> float:
        if "copy" not in self.values:
            megabytes = 1024 if self.device == "cuda" else 128
            source = torch.ones(megabytes * 2**18, device=self.device)
            target = torch.empty_like(source)
            self.values["copy"] = 2 * source.nbytes / self._best(lambda: target.copy_(source))
        return self.values["copy"]

    def matmul(self, dtype: str) -> float:
        """Square products, doubled in size until one takes 20 ms (at most 8192)."""
        name = f"matmul {dtype}"
        if name not in self.values:
            size, seconds = 256, 0.0
            while True:
                left, right = torch.randn(2, size, size, device=self.device).to(DTYPES[dtype]).unbind()
                seconds = self._best(lambda a=left, b=right: a @ b)
                self.values[name] = max(self.values.get(name, 0.0), 2 * size**3 / seconds)
                if seconds > 0.02 or size >= 8192:
                    break
                size *= 2
        return self.values[name]

    def _best(self, call: Call) -> float:
        call()
        return min(timed(call, self.device) for _ in range(5))


def peak_bytes(call: Call, device: str) -> int:
    """Most bytes that PyTorch's allocator held at once during the call, above what it held before.

    CUDA: its own statistics. CPU: the profiler's record of every allocation, temporaries inside operators
    included; scratch that oneDNN and C++ bodies allocate for themselves is not in it.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        call()
    cpu = torch.autograd.DeviceType.CPU
    events = recorded.profiler.kineto_results.events()
    changes = sorted(
        (e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]" and e.device_type() == cpu
    )
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
