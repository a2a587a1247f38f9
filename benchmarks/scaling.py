"""What a second process costs a step, and what the formula of docs/scaling.md predicts for machines that are not here.

    torchrun --nproc-per-node 2 -m benchmarks.scaling [--steps 4] [--send-gradients bf16]
    python -m benchmarks.scaling --predict          only the predictions

In turns, so that what else the machine does falls on all alike: one process steps alone while the others wait; all step,
each for itself; all step together. The first against the second is what cores on one machine take from each other, the
second against the third what the exchange adds. One thread a process. Seconds of processor time stand beside those of the
clock, since other programs add nothing to them.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.step import random_batch, step_config
from dgnet_fast.distributed import processes
from dgnet_fast.models.appearance_encoder import build_teacher
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.step import TrainingStep

MILLIONS = {"id": 28.4, "gen": 13.4, "dis": 1.0}
"""Parameters of the paper's networks."""
MACHINES = {
    "8 H100, NVLink": (8, 300e9, 20e-6),
    "4 machines of 8 H100, 100 Gbit/s each": (32, 12.5e9, 60e-6),
    "4 machines of 1 GPU, 100 Gbit/s each": (4, 12.5e9, 60e-6),
}
"""Processes, bytes a second through the narrowest place of the ring, seconds for a small exchange."""
HIDDEN = 0.25
"""Share of a step in which E_a's sums are under way: the backward pass of G and E_s, which follows its last gradient."""


def predicted(
    step: float, count: int, bandwidth: float, latency: float, bytes_each: int
) -> tuple[float, float]:
    """(seconds of exchange that nothing hides, efficiency) for a step of ``step`` seconds; see docs/scaling.md."""
    ring = 2 * (count - 1) / count / bandwidth
    times = {name: 1e6 * n * bytes_each * ring + latency for name, n in MILLIONS.items()}
    seen = max(0.0, times["id"] - HIDDEN * step) + times["gen"] + times["dis"] + 3 * latency
    return seen, step / (step + seen)


def predict() -> None:
    print(f"{'machine':40}{'step':>8}{'sent':>6}{'exchange seen':>15}{'efficiency':>12}")
    for name, (count, bandwidth, latency) in MACHINES.items():
        for step in (0.010, 0.030, 0.050, 0.100):
            for dtype, size in (("fp32", 4), ("bf16", 2)):
                seen, share = predicted(step, count, bandwidth, latency, size)
                print(f"{name:40}{step * 1e3:6.0f}ms{dtype:>6}{seen * 1e3:13.2f}ms{share:12.3f}")


KINDS = ("one alone", "each for itself", "together", "of it waiting")
"""The last is time in which a process waits for sums, or for the other to come to them."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, each process is one by itself."""
    plain = processes._together
    processes._together = lambda: False
    try:
        yield
    finally:
        processes._together = plain


def measure(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    config = step_config(args).replace(send_gradients=args.send_gradients)
    model = DGNet(config, [build_teacher(config, 2, torch.Generator().manual_seed(1))])
    model.to(memory_format=torch.channels_last)
    step = TrainingStep(model, Optimisers(model, config), Precision(None, torch.device("cpu")))
    batch = random_batch(config, processes.rank(), "cpu")
    waited: list[float] = []
    plain = processes.finish

    def finish(work: Any) -> None:
        begin = time.perf_counter()
        plain(work)
        waited.append(time.perf_counter() - begin)

    processes.finish = finish

    def timed(work: Callable[[], object]) -> tuple[float, float]:
        """Seconds of the clock and of the processor, Gloo's threads included."""
        dist.barrier()
        begin, busy = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - begin, time.process_time() - busy

    def one_step() -> None:
        step([batch], 0)

    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    with alone():
        one_step()
    for _ in range(args.steps):
        with alone():
            took = timed(one_step if processes.rank() == 0 else lambda: None)
        rows["one alone"].append(processes.agreed(took))
        with alone():
            took = timed(one_step)
        rows["each for itself"].append(slowest(took))
        waited.clear()
        rows["together"].append(slowest(timed(one_step)))
        rows["of it waiting"].append(slowest((sum(waited), 0.0)))
        if processes.is_first():
            last = {name: found[-1] for name, found in rows.items()}
            said = (
                f"{name} {clock:.2f} s, {busy:.2f} of the processor" for name, (clock, busy) in last.items()
            )
            print("; ".join(said), flush=True)
    sums, _ = slowest(timed(lambda: processes.sum_(torch.ones(43_000_000))))
    if processes.is_first():
        clock, busy = (
            {name: statistics.median(one[k] for one in found) for name, found in rows.items()}
            for k in range(2)
        )
        for name in KINDS:
            print(f"{name:20}{clock[name]:8.2f} s a step, {busy[name]:8.2f} s of the processor")
        sent = {name: step.sums.bytes_of(name) / 1e6 for name in ("id", "gen", "dis")}
        print("sent by each process: " + ", ".join(f"{name} {value:.1f} MB" for name, value in sent.items()))
        print(f"43 million float32 summed with nothing to hide it: {sums:.2f} s")
        for name in KINDS[:2]:
            shares = clock[name] / clock["together"], busy[name] / busy["together"]
            print(f"efficiency against {name}: {shares[0]:.3f}, by the processor's seconds {shares[1]:.3f}")


def slowest(took: tuple[float, float]) -> tuple[float, float]:
    """The largest of each of all processes' two numbers."""
    clock, busy = zip(*processes.gathered(took), strict=True)
    return max(clock), max(busy)


def parser() -> argparse.ArgumentParser:
    from benchmarks.step import parser as step_parser

    made = step_parser()
    made.description = __doc__
    made.add_argument("--steps", type=int, default=3, help="rounds of the three kinds of step")
    made.add_argument("--send-gradients", default="as-is", choices=("as-is", "bf16"))
    made.add_argument("--predict", action="store_true", help="print the predictions and measure nothing")
    made.set_defaults(height=128, width=64, precision="fp32", device="cpu")
    return made


def main() -> int:
    args = parser().parse_args()
    if args.predict:
        predict()
        return 0
    with processes.joined():
        if processes.size() == 1:
            print("start it with torchrun --nproc-per-node 2 -m benchmarks.scaling", file=sys.stderr)
            return 1
        measure(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
