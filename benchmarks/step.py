"""The training step as a process of its own, so that each side has its own allocator, peak memory and settings.

    python -m benchmarks.step --batch 8 --rounds 3              # ours, as the trainer runs it
    python -m benchmarks.step --plain                           # the plain step
    python -m benchmarks.step --public DIR                      # a checkout of the public code
    python -m benchmarks.step --profile                         # where its time goes; on a GPU launches and idle time
    python -m benchmarks.step --gains                           # what torch.compile gains in each part of it
    python -m benchmarks.step --preset small --gains            # the same in the default run's step
    DGNET_FAST_MALLOC=0 python -m benchmarks.step --plain       # with malloc as the system has it

All sides have the same weights and inputs: the paper's networks, 751 identities, one teacher, random erasing, dropout;
the branch that trains E_s alternates with the frozen one from step to step. With another preset, for ours alone, its networks
and options, for 751 identities too. With --serve it answers commands on standard input (check, step, peak, profile, quit)
with a line of JSON each: what benchmarks/test_step.py drives.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch

import dgnet_fast
from benchmarks.conftest import allocator
from benchmarks.flops import step_flops
from benchmarks.measure import synchronize
from benchmarks.plain_step import PlainStep
from benchmarks.public_code import Public, check_folder
from dgnet_fast.config import Config, from_dict
from dgnet_fast.config.presets import PRESETS, preset
from dgnet_fast.data import Batch
from dgnet_fast.data.augment import random_erasing_boxes
from dgnet_fast.models.appearance_encoder import appearance_input_size, build_teacher
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training import runner
from dgnet_fast.training.graphs import WARM_UP
from dgnet_fast.training.guard import StepResult
from dgnet_fast.training.optim import Optimisers, Precision, resolve_amp
from dgnet_fast.training.runner import LABEL
from dgnet_fast.training.step import TrainingStep

IDS = 751
RAMPS = {
    "before": {"warm_iter": 10**6, "warm_teacher_iter": 10**6},
    "after": {"recon_f_w": 1.0, "recon_s_w": 1.0, "recon_x_cyc_w": 2.0, "teacher_w": 2.0},
}
CHECK_BATCH, CHECK_SIZE = 2, (144, 72)
SETTLED = 2
"""Steps of either branch after which everything is compiled."""

Terms = dict[str, list[float] | float]


def step_config(args: argparse.Namespace) -> Config:
    """The preset's options, with the loss weights of before or after the ramps; ValueError for options that do not go
    together.
    """
    if args.preset != "paper" and (args.plain or args.public):
        raise ValueError(f"preset is {args.preset!r}; with --plain or --public allowed: paper")
    config = from_dict(preset(args.preset))
    return config.replace(
        ID_class=IDS,
        batch_size=args.batch,
        crop_image_height=config.crop_image_height if args.height is None else args.height,
        crop_image_width=config.crop_image_width if args.width is None else args.width,
        amp={"fp32": "off"}.get(args.precision, args.precision),
        compile=args.compile,
        cuda_graphs=args.cuda_graphs,
        checkpoint_activations=args.checkpoint_activations,
        side_by_side=not args.in_a_row,
        device=args.device,
        **RAMPS[args.ramps],
    )


def random_batch(config: Config, seed: int, device: str, erasing: bool = True) -> Batch:
    """Noise pictures of the options' number and size with labels, boxes to erase (where the options erase) and the further
    pictures that the options ask for.
    """
    generator = torch.Generator().manual_seed(seed)
    count, size = config.batch_size, (config.crop_image_height, config.crop_image_width)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, 3, *size, generator=generator).clamp(-2, 2).to(device)

    def people(*shape: int) -> torch.Tensor:
        return torch.randint(config.ID_class, shape, generator=generator).to(device)

    pictures, labels, boxes = noise(4, count), people(2, count), None
    if erasing and config.erasing_p:
        rng = np.random.default_rng(seed)
        drawn = random_erasing_boxes(rng, 4 * count, *appearance_input_size(config), config.erasing_p)
        boxes = torch.from_numpy(drawn).view(4, count, 4).to(device)
    batch = Batch(pictures[:2], pictures[2:], labels, boxes)
    if half := config.real_batch // 2:
        batch = batch._replace(more=noise(2, half), more_labels=people(2, half))
    return batch


class Side(Protocol):
    """One implementation of the step."""

    def set_dropout(self, on: bool) -> None: ...

    def step(self, batch: Batch, index: int, *, train_encoder: bool) -> Terms: ...


class Ours:
    """The step as the trainer runs it: channels_last weights, autocast as configured."""

    def __init__(self, model: DGNet, device: str) -> None:
        model.to(memory_format=torch.channels_last)
        where = torch.device(device)
        torch.backends.cudnn.benchmark = (
            where.type == "cuda"
        )  # as the trainer has it; the process is this side's alone
        precision = Precision(resolve_amp(model.config, where), where)
        self.training_step = TrainingStep(model, Optimisers(model, model.config), precision)
        # both branches warm up and are recorded before a step is like the next
        self.settling = 2 * (WARM_UP + 1) if self.training_step.graphs else 0

    def set_dropout(self, on: bool) -> None:
        self.training_step.dropout = on

    def queue(self, batch: Batch, index: int, *, train_encoder: bool) -> StepResult:
        """A step whose losses nobody has read yet."""
        self.training_step.model.config.use_encoder_again = float(train_encoder)
        return self.training_step([batch], index)

    def step(self, batch: Batch, index: int, *, train_encoder: bool) -> Terms:
        return self.queue(batch, index, train_encoder=train_encoder).terms


class Plain:
    """benchmarks/plain_step.py, as it is or, on request, under autocast and with compiled networks."""

    def __init__(self, model: DGNet, device: str) -> None:
        self.plain = PlainStep(model)
        torch.backends.cudnn.benchmark = device == "cuda"  # as the public code's training script
        self.precision = Precision(resolve_amp(model.config, torch.device(device)), torch.device(device))
        if model.config.compile:
            for net in (self.plain.E_s, self.plain.G, self.plain.E_a):  # D is differentiated twice
                net.compile()

    def set_dropout(self, on: bool) -> None:
        self.plain.set_dropout(on)

    def step(self, batch: Batch, index: int, *, train_encoder: bool) -> Terms:
        with self.precision.autocast():
            return self.plain.step(batch, index, train_encoder=train_encoder)


KINDS = {
    "conv3x3": ("dgnet_fast::conv3x3",),
    "other convolutions": ("aten::mkldnn_conv", "aten::convolution", "aten::_slow_conv", "aten::thnn_conv"),
    "norms": ("dgnet_fast::adain_act", "dgnet_fast::layer_norm_act", "dgnet_fast::batch_norm_act",
        "aten::native_batch_norm", "aten::native_group_norm", "aten::var", "aten::std"),
    "losses": ("dgnet_fast::loss_", "aten::_log_softmax", "aten::nll_loss", "aten::abs", "aten::sgn", "aten::mse"),
    "matrix products": ("dgnet_fast::appearance_mlp", "aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm"),
    "activations": ("dgnet_fast::act_pad", "aten::leaky_relu", "aten::relu", "aten::threshold", "aten::elu", "aten::tanh"),
    "padding, resizing, pooling": ("aten::reflection_pad", "aten::replication_pad", "aten::upsample", "aten::max_pool",
        "aten::avg_pool", "aten::adaptive", "aten::pixel_", "aten::repeat_interleave", "aten::constant_pad"),
    "copies and fills": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::clone"),
    "sums and products": ("aten::add", "aten::mul", "aten::sum", "aten::sub", "aten::div", "aten::mean"),
    "optimisers": ("aten::_foreach", "aten::_fused", "Optimizer."),
}  # fmt: skip
"""Kind of work → how the profiler's names of it begin, the first that fits."""


def kind_of(name: str) -> str:
    """The kind of work of a profiler's event, "other" where `KINDS` has none. An op of ours that keeps something for its
    gradient runs under the name of the node that PyTorch makes for it.
    """
    name = name.removeprefix("GeneratedBackwardFor_").replace("dgnet_fast_", "dgnet_fast::")
    fitting = (kind for kind, begins in KINDS.items() if name.startswith(begins))
    return next(fitting, "other")


def busy_time(intervals: list[tuple[int, int]]) -> int:
    """Time covered by at least one of the (begin, end) intervals."""
    covered, reached = 0, -math.inf
    for begin, end in sorted(intervals):
        covered += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


class Runner:
    """Inputs, timing and memory around one side."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.args, config = args, step_config(args)
        model = DGNet(config, [build_teacher(config, 1, torch.Generator().manual_seed(1))])
        with torch.no_grad():  # at its first weights D's scores are near 0 whatever it sees
            for parameter in model.discriminator.parameters():
                parameter.mul_(3)
        model.to(args.device)
        self.side: Side
        if args.public:
            self.side = Public(model, args.public, args.device)
        else:
            self.side = (Plain if args.plain else Ours)(model, args.device)
        self.config, self.count = config, 0
        self.batches = [random_batch(config, seed, args.device) for seed in range(2)]

    def check(self) -> dict[str, float]:
        """Losses of one small step without dropout and erasing, summed over streams: with the preset paper equal for all
        sides.
        """
        self.side.set_dropout(False)
        height, width = CHECK_SIZE
        small = self.config.replace(batch_size=CHECK_BATCH, crop_image_height=height, crop_image_width=width)
        batch = random_batch(small, 7, self.args.device, erasing=False)
        terms = self.side.step(batch, 0, train_encoder=True)
        self.side.set_dropout(True)
        return {name: sum(value) if isinstance(value, list) else value for name, value in terms.items()}

    def step(self) -> float:
        """Seconds of one step, from inputs on the device to losses read; the first call lets the side settle."""
        while self.count < getattr(self.side, "settling", 0):
            self._one()
        synchronize(self.args.device)
        begin = time.perf_counter()
        self._one()
        synchronize(self.args.device)
        return time.perf_counter() - begin

    def _one(self) -> None:
        self.side.step(self.batches[self.count % 2], self.count, train_encoder=self.count % 2 == 0)
        self.count += 1

    def shares(self, steps: int = 2) -> dict[str, dict[str, float]]:
        """Seconds of a step on a CPU, the mean of both branches: of ours by part of the step, forward and backward, and
        of any side by kind of work.
        """
        for _ in range(2):
            self.step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            for _ in range(steps):
                self.step()
        parts: dict[str, float] = {}
        kinds: dict[str, float] = {}
        for event in recorded.key_averages():
            if event.key.startswith(LABEL):
                parts[event.key.removeprefix(LABEL)] = event.cpu_time_total / steps / 1e6
            kind = kind_of(event.key)
            kinds[kind] = kinds.get(kind, 0) + event.self_cpu_time_total / steps / 1e6
        return {"part": parts, "kind": kinds}

    def gains(self, rounds: int) -> dict[str, tuple[float, float]]:
        """Seconds of each part of ours, forward and backward, eager and compiled: medians over ``rounds`` steps of either
        branch, without CUDA graphs. Parts are timed one by one, which takes a GPU's overlap of host and device away. All are
        compiled, also those that a run leaves as they are on a CPU.
        """
        if not isinstance(self.side, Ours):
            raise ValueError("gains by part are asked for of --plain or --public; allowed: ours")
        with mock.patch.object(TrainingStep, "COMPILED_ON_CPU", None):
            eager, fast = (self._by_part(compiled, rounds) for compiled in (False, True))
        return {name: (value, fast[name]) for name, value in eager.items()}

    def _by_part(self, compiled: bool, rounds: int) -> dict[str, float]:
        """Median seconds of each part, by name, of the eager or of the compiled step."""
        assert isinstance(self.side, Ours)
        model = self.side.training_step.model
        model.config.compile, model.config.cuda_graphs = compiled, "off"
        self.side = Ours(model, self.args.device)
        for _ in range(2 * SETTLED):
            self._one()
        seen: dict[str, list[float]] = {}
        for _ in range(2 * rounds):
            seconds: dict[str, float] = {}
            with mock.patch.object(runner, "labelled", self._timed(seconds)):
                self._one()
            for name, value in seconds.items():
                seen.setdefault(name, []).append(value)
        return {name: statistics.median(values) for name, values in seen.items()}

    def _timed(self, seconds: dict[str, float]) -> Callable[[str], contextlib.AbstractContextManager]:
        """`runner.labelled` that also adds the time spent within to ``seconds``, by name."""
        plain = runner.labelled

        @contextlib.contextmanager
        def timed(name: str) -> Iterator[None]:
            synchronize(self.args.device)
            begin = time.perf_counter()
            with plain(name):
                yield
            synchronize(self.args.device)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin

        return timed

    def profile(self, steps: int = 10) -> dict[str, float]:
        """Per step, of ours on a GPU, losses unread: calls of the host that launch work, kernels and copies on the
        device, milliseconds, and the share of them in which the device does nothing.
        """
        if self.args.device != "cuda" or not isinstance(self.side, Ours):
            raise ValueError(
                f"a profile of launches on {self.args.device} is asked for; allowed: ours (no --plain or --public) on cuda"
            )
        for _ in range(2):
            self.step()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as recorded:
            for _ in range(steps):
                batch = self.batches[self.count % 2]
                self.side.queue(batch, self.count, train_encoder=self.count % 2 == 0)
                self.count += 1
            torch.cuda.synchronize()
        events = recorded.profiler.kineto_results.events()
        on_device = [e for e in events if e.device_type() == torch.autograd.DeviceType.CUDA]
        intervals = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in on_device]
        span = max(end for _, end in intervals) - min(begin for begin, _ in intervals)
        launches = [e for e in events if "Launch" in e.name() and e.name().startswith("cu")]
        return {
            "launches": len(launches) / steps,
            "device_events": len(on_device) / steps,
            "ms": span / steps / 1e6,
            "idle": 1 - busy_time(intervals) / span,
        }

    def peak(self) -> int:
        """Peak memory in bytes: of the GPU's allocator, or of this process as the kernel counted it."""
        if self.args.device == "cuda":
            return torch.cuda.max_memory_allocated()
        with open("/proc/self/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


def serve(measured: Runner) -> None:
    """Answer commands until quit or the end of input."""
    answers = sys.stdout
    print(json.dumps({"ready": True, "malloc_kept": dgnet_fast.malloc_kept}), file=answers, flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "quit":
            return
        with contextlib.redirect_stdout(io.StringIO()):
            answer: Any = {name: getattr(measured, name) for name in ("check", "step", "peak", "profile")}[
                command
            ]()
        print(json.dumps(answer), file=answers, flush=True)


def parser() -> argparse.ArgumentParser:
    cuda = torch.cuda.is_available()
    made = argparse.ArgumentParser(description="Time one training step of DG-Net.")
    side = made.add_mutually_exclusive_group()
    side.add_argument("--plain", action="store_true", help="the plain step instead of ours")
    side.add_argument("--public", metavar="DIR", help="a checkout of the public code instead of ours")
    made.add_argument("--batch", type=int, default=8, help="pictures of a stream")
    made.add_argument("--preset", choices=PRESETS, default="paper", help="whose networks and options")
    made.add_argument("--height", type=int, help="pixels (default: the preset's)")
    made.add_argument("--width", type=int, help="pixels (default: the preset's)")
    made.add_argument(
        "--ramps", choices=RAMPS, default="after", help="loss weights before or after the ramps"
    )
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast")
    made.add_argument("--compile", action="store_true", help="torch.compile")
    made.add_argument("--cuda-graphs", choices=("auto", "on", "off"), default="auto", help="record our step")
    made.add_argument("--in-a-row", action="store_true", help="parts of our recorded step not side by side")
    made.add_argument("--checkpoint-activations", action="store_true", help="the trainer's option, for ours")
    made.add_argument("--profile", action="store_true", help="where the time of a step goes")
    made.add_argument(
        "--gains", action="store_true", help="what torch.compile gains in each part of our step"
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    made.add_argument("--rounds", type=int, default=3, help="steps timed, after one to warm up")
    made.add_argument("--serve", action="store_true", help="answer commands on standard input")
    return made


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        if args.public:
            check_folder(args.public)
        with contextlib.redirect_stdout(io.StringIO()):  # the public code prints as it goes
            measured = Runner(args)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"benchmarks.step: {error}", file=sys.stderr)
        return 2
    if args.serve:
        serve(measured)
        return 0
    if args.gains:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                gained = measured.gains(args.rounds)
        except ValueError as error:
            print(f"benchmarks.step: {error}", file=sys.stderr)
            return 2
        print("| part | eager ms | compiled ms | eager / compiled |\n|---|--:|--:|--:|")
        for name, (eager, fast) in gained.items():
            print(f"| {name} | {1e3 * eager:.1f} | {1e3 * fast:.1f} | {eager / fast:.2f} |")
        return 0
    if args.profile and args.device == "cpu":
        with contextlib.redirect_stdout(io.StringIO()):
            found = measured.shares()
        for column, seconds in found.items():
            total = sum(seconds.values())
            if not seconds:  # only our step names its parts
                continue
            print(f"| {column} | seconds | share of {total:.2f} s |\n|---|--:|--:|")
            for name, value in sorted(seconds.items(), key=lambda row: -row[1]):
                print(f"| {name} | {value:.2f} | {value / total:.1%} |")
            print()
        return 0
    if args.profile:
        try:
            found = measured.profile()
        except ValueError as error:
            print(f"benchmarks.step: {error}", file=sys.stderr)
            return 2
        print(
            f"a step: {found['launches']:.0f} launches, {found['device_events']:.0f} kernels and copies, "
            f"{found['ms']:.2f} ms, device idle {found['idle']:.1%}"
        )
        return 0
    with contextlib.redirect_stdout(io.StringIO()):
        measured.step()
        seconds = [measured.step() for _ in range(args.rounds)]
    median = statistics.median(seconds)
    print(f"median {1e3 * median:.1f} ms of {args.rounds}, ", end="")
    if args.preset == "paper":  # whose objective `step_flops` counts
        rate = step_flops(measured.config, args.ramps == "after") / median / 1e12
        print(f"{rate:.3f} TFLOP/s of least work, ", end="")
    print(f"peak {measured.peak() / 1e9:.2f} GB, {allocator()}, {torch.get_num_threads()} threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
