"""The training step of UNIT: ours against the plain step and, where UNIT_REFERENCE names a checkout, the public code.

    python -m benchmarks.unit_step --batch 1 --rounds 3
    UNIT_REFERENCE=DIR python -m benchmarks.unit_step --batch 8
    python -m benchmarks.unit_step --height 128 --width 64 --dim 32       smaller, for a machine of little patience

Every side is a process of its own with equal weights and pictures, float32: the median time of a step, by the clock and as
the CPU time of its threads, which other jobs of the machine disturb less; the largest resident memory of the process as
the kernel counted it (on a GPU PyTorch's peak); and the losses of its first step, which must agree. On a CPU the baselines
run twice: with malloc as the system has it ("as shipped") and as dgnet_fast sets it. --serve SIDE is one such process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain_unit import PlainUnit
from dgnet_fast.checkpoints.public_layout import export_state
from dgnet_fast.checkpoints.unit import LAYOUTS
from dgnet_fast.config.unit import UnitConfig, unit_from_dict
from dgnet_fast.models.typed import in_channels_last
from dgnet_fast.models.unit import Unit
from dgnet_fast.report.tables import format_table
from dgnet_fast.training.optim import Precision, resolve_amp
from dgnet_fast.translation.step import UnitBatch, UnitOptimisers, UnitStep

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-3
"""Relative difference of the first step's losses in float32; on a GPU convolutions in TF32 have three digits."""


def shared_noise(name: str, code: Tensor) -> Tensor:
    """Noise by name, the same for every side: `UnitStep` asks for it by name, and the public code draws in this order."""
    order = ["dis.n_a", "dis.n_b", "gen.n_a", "gen.n_b", "gen.n_ba", "gen.n_ab"]
    generator = torch.Generator().manual_seed(order.index(name))
    return torch.randn(code.shape, generator=generator).to(code)


class Public:
    """The public trainer with our weights, from a checkout of it; none of its code is here."""

    def __init__(self, model: Unit, folder: str) -> None:
        root = Path(folder)
        if not (root / "trainer.py").is_file():
            raise ValueError(
                f"UNIT_REFERENCE={folder} holds no trainer.py: not a checkout of the public code"
            )
        self._stand_in()
        if not torch.cuda.is_available():
            torch.Tensor.cuda = lambda self, *args, **kwargs: self
            torch.nn.Module.cuda = lambda self, *args, **kwargs: self
        sys.path.insert(0, str(root))
        import trainer  # from the checkout

        options = model.config.to_dict()
        self.options = options | {"gen": dict(options["gen"]), "dis": dict(options["dis"])}
        self.trainer = trainer.UNIT_Trainer(self.options)
        for kind in ("gen", "dis"):
            for domain, name in enumerate("ab"):
                state = export_state(model, LAYOUTS[kind](model, domain))
                getattr(self.trainer, f"{kind}_{name}").load_state_dict(state, strict=False)
        if torch.cuda.is_available():
            self.trainer.cuda()

    @staticmethod
    def _stand_in() -> None:
        """What its modules import and the step does not use: torchvision, and what PyTorch no longer has."""
        for name in (
            "torchvision",
            "torchvision.models",
            "torchvision.transforms",
            "torchvision.utils",
            "torchvision.datasets",
        ):
            module = sys.modules.setdefault(name, types.ModuleType(name))
            module.__path__ = []
        serialization = types.ModuleType("torch.utils.serialization")
        serialization.load_lua = None
        sys.modules["torch.utils.serialization"] = serialization

    def step(self, x: Tensor, index: int, noise: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
        x_a, x_b = x
        net = self.trainer
        net.update_learning_rate()
        net.dis_update(x_a, x_b, self.options)
        net.gen_update(x_a, x_b, self.options)
        return {"dis_total": float(net.loss_dis_total), "total": float(net.loss_gen_total)}


class Ours:
    def __init__(self, model: Unit, device: torch.device) -> None:
        in_channels_last(model, device)
        precision = Precision(resolve_amp(model.config, device), device)
        self.runner = UnitStep(model, UnitOptimisers(model, model.config), precision, noise=shared_noise)

    def step(self, x: Tensor, index: int, noise: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
        return self.runner([UnitBatch(x)], index).terms


def config_of(args: argparse.Namespace) -> UnitConfig:
    return unit_from_dict({}).replace(
        gen__dim=args.dim, dis__dim=args.dim, crop_image_height=args.height, crop_image_width=args.width,
        batch_size=args.batch, amp={"fp32": "off"}.get(args.precision, args.precision), compile=args.compile,
        checkpoint_activations=args.checkpoint_activations,
    )  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The median seconds of each step but the first (of the first if it is alone), by the clock and of the CPU, peak memory,
    and the first step's totals, of the side ``args.serve``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Unit(config_of(args)).to(device)
    side: Any
    if args.serve == "ours":
        side = Ours(model, device)
    elif args.serve == "plain":
        side = PlainUnit(model)
    else:
        side = Public(model, os.environ["UNIT_REFERENCE"])
    generator = torch.Generator().manual_seed(1)
    size = (2, args.batch, 3, args.height, args.width)
    x = (0.5 * torch.randn(size, generator=generator)).clamp(-1, 1).to(device)
    del model
    seconds, computed, first = [], [], {}
    for index in range(1 + args.rounds):
        begin, before = time.perf_counter(), time.process_time()
        terms = side.step(x, index, shared_noise)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
        computed.append(time.process_time() - before)
        first = first or {name: terms[name] for name in ("dis_total", "total")}
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    timed = slice(1 if args.rounds else 0, None)
    medians = {"seconds": statistics.median(seconds[timed]), "computed": statistics.median(computed[timed])}
    return medians | {"peak": peak, "first": first}


def ask(side: str, keeps: bool, argv: list[str]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.unit_step", "--serve", side, *argv],
        cwd=ROOT, env=os.environ | {"DGNET_FAST_MALLOC": "1" if keeps else "0"}, text=True, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{side}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """The table of all sides."""
    sides = [("plain", False), ("plain", True), ("ours", True)]
    if os.environ.get("UNIT_REFERENCE"):
        sides = [("public", False), ("public", True), *sides]
    if torch.cuda.is_available():
        sides = [side for side in sides if side[1]]
    found = {side: ask(*side, argv) for side in sides}
    ours, plain = found["ours", True], found["plain", True]
    for name, value in plain["first"].items():
        if abs(ours["first"][name] - value) > TOLERANCE * abs(value):
            raise ValueError(
                f"{name} of the first step is {ours['first'][name]} in ours and {value} in the plain step"
            )
    rows = [
        [
            f"{side}{'' if keeps or torch.cuda.is_available() else ', malloc as is'}",
            round(one["seconds"], 3),
            round(one["seconds"] / ours["seconds"], 2),
            round(one["computed"], 3),
            round(one["computed"] / ours["computed"], 2),
            round(one["peak"] / 2**30, 2),
            round(100 * ours["peak"] / one["peak"], 1),
        ]
        for (side, keeps), one in found.items()
    ]
    timed = f"median of {args.rounds} steps after one" if args.rounds else "the first step"
    return {
        "title": f"One training step of UNIT, batch {args.batch} a domain, {args.height}x{args.width}, dim {args.dim}, {args.precision}",
        "columns": [
            "",
            "seconds",
            "times ours",
            "CPU seconds",
            "times ours",
            "peak GiB",
            "ours, percent of it",
        ],
        "rows": rows,
        "notes": [f"{timed}; {torch.get_num_threads()} threads; PyTorch {torch.__version__}"],
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Time one training step of UNIT.")
    made.add_argument("--batch", type=int, default=1, help="pictures of a domain")
    made.add_argument("--height", type=int, default=256, help="pixels")
    made.add_argument("--width", type=int, default=128, help="pixels")
    made.add_argument("--dim", type=int, default=64, help="width of the first layers")
    made.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of ours; the others are fp32"
    )
    made.add_argument("--compile", action="store_true", help="torch.compile, ours")
    made.add_argument("--checkpoint-activations", action="store_true", help="compute activations again, ours")
    made.add_argument("--rounds", type=int, default=3, help="steps timed, after one to warm up; 0: that one")
    made.add_argument("--serve", choices=("ours", "plain", "public"), help="measure one side and print JSON")
    return made


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    if args.serve:
        print(json.dumps(measure(args)))
        return 0
    try:
        print(format_table(table(args, argv)))
    except (ValueError, RuntimeError) as error:
        print(f"benchmarks.unit_step: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
