"""How many operators a step of ours calls and how many bytes they read and write, without running any of them.

    python -m benchmarks.launches [--batch 8] [--height 256] [--width 128] [--precision bf16] [--ramps after]

Eager, by part of the step and by operator, counted on fake CPU tensors in half a minute on any machine: about what a GPU
has to launch, which is what bounds a step of small batches there. An operator may be several kernels; a few of losses and
copies differ there, and G's replicate padding is 5 calls and 9 for its gradient, here one each. Views and allocations are
left out; bytes are those of an operator's arguments and results, as if no cache held them. Casts that only a CPU's autocast
makes, around padding, are left out too.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.step import LABEL, RAMPS, random_batch, step_config
from benchmarks.step import parser as step_parser
from dgnet_fast.models.appearance_encoder import build_teacher
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.parts import Settings
from dgnet_fast.training.schedule import weights_at
from dgnet_fast.training.step import TrainingStep

NOTHING = ("empty", "new_empty", "_unsafe_view")
"""How the names of operators begin that do no work on a device and that PyTorch does not call views."""

OUTSIDE = "update"


class Count(TorchDispatchMode):
    """``calls`` and ``bytes`` by (part of the step, operator)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self._parts = [OUTSIDE]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        made = func(*args, **(kwargs or {}))
        space, name = func._schema.name.split("::")
        if space == "profiler":
            if "enter" in name:
                self._parts.append(
                    args[0].removeprefix(LABEL) if args[0].startswith(LABEL) else self._parts[-1]
                )
            else:
                self._parts.pop()
        elif space != "prim" and not func.is_view and not name.startswith(NOTHING):
            key = self._parts[-1], name
            self.calls[key] += 1
            self.bytes[key] += sum(
                x.numel() * x.element_size()
                for x in tree_leaves((args, kwargs, made))
                if isinstance(x, torch.Tensor)
            )
        return made


@contextlib.contextmanager
def padding_without_casts() -> Iterator[None]:
    """A CPU's autocast pads in float32, a GPU's in what comes."""
    pad = F.pad

    def uncast(*args, **options):  # noqa: ANN002, ANN003, ANN202
        with torch.autocast("cpu", enabled=False):
            return pad(*args, **options)

    F.pad = uncast
    try:
        yield
    finally:
        F.pad = pad


def count(args: argparse.Namespace, *, train_encoder: bool) -> Count:
    """One step with the options of `benchmarks.step`, losses checked as on a GPU."""
    config = step_config(args)
    counted = Count()
    with FakeTensorMode(allow_non_fake_inputs=True), padding_without_casts():
        model = DGNet(config, [build_teacher(config, 1)])
        batch = random_batch(config, (args.batch, args.height, args.width), 0, "cpu", True)
        dtype = {"fp32": None, "bf16": torch.bfloat16}[args.precision]
        step = TrainingStep(
            model,
            Optimisers(model, config, fused=True),
            Precision(dtype, torch.device("cpu")),
            deferred=True,
        )
        step.optimisers.set_learning_rates(0)
        plan = Settings(step.weights.set(weights_at(config, 0)), train_encoder, True)
        with counted:
            step.update([batch], plan)
    return counted


def rows(counted: Count, column: int) -> list[str]:
    """A table by part (column 0) or operator (1), most calls first."""
    calls: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for key, number in counted.calls.items():
        calls[key[column]] += number
        moved[key[column]] += counted.bytes[key]
    lines = [f"| {('part', 'operator')[column]} | calls | GB |", "|---|--:|--:|"]
    return lines + [
        f"| {name} | {number} | {moved[name] / 1e9:.2f} |" for name, number in calls.most_common()
    ]


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__)
    made.add_argument("--batch", type=int, default=8, help="pictures of a stream")
    made.add_argument("--height", type=int, default=256, help="pixels")
    made.add_argument("--width", type=int, default=128, help="pixels")
    made.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    made.add_argument(
        "--ramps", choices=RAMPS, default="after", help="loss weights before or after the ramps"
    )
    own = vars(made.parse_args(arguments))
    args = argparse.Namespace(**vars(step_parser().parse_args(["--device", "cpu"])) | own)
    for train_encoder in (True, False):
        counted = count(args, train_encoder=train_encoder)
        print(
            f"\n{sum(counted.calls.values())} calls, {sum(counted.bytes.values()) / 1e9:.1f} GB: "
            f"batch {args.batch}, {args.height}x{args.width}, {args.precision}, {args.ramps} the ramps, "
            f"structure reconstruction through {'E_s in training' if train_encoder else 'a frozen E_s'}\n"
        )
        print("\n".join([*rows(counted, 0), "", *rows(counted, 1)[:27]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
