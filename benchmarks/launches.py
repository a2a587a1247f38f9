"""How many kernels a step of ours launches on a GPU and how many bytes they read and write, without running any of them.

    python -m benchmarks.launches [--batch 8] [--height 256] [--width 128] [--precision bf16] [--ramps after]

Eager, by part of the step and by operator, counted on fake CPU tensors in half a minute on any machine, with what a CPU
does otherwise than a GPU put right: the weights are in channels_last; an operator of ours is as many kernels as its Triton
body, and reads twice what that reads twice; the gradients of a convolution's input, weight and bias are kernels of their
own, and so is the addition of its bias; a convolution copies what does not come in channels_last (`layout copies`);
`F.pixel_shuffle` answers in NCHW; replicate padding is the slices that it is there; losses are ops of ours. Views and
allocations are left out; bytes are those of arguments and results, as if no cache held them. Lists of tensors that need
more than one launch are counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from dgnet_fast.kernels import batch_norm_act
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.step import LABEL, RAMPS, random_batch, step_config
from benchmarks.step import parser as step_parser
from dgnet_fast.models.appearance_encoder import build_teacher
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.ops.padding import _Replicated
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.parts import Settings
from dgnet_fast.training.schedule import weights_at
from dgnet_fast.training.step import TrainingStep

NOTHING = ("empty", "new_empty", "_unsafe_view")
"""How the names of operators begin that do no work on a device and that PyTorch does not call views."""

OUTSIDE = "update"


KERNELS = {
    "adain_act": 2,
    "adain_act_backward": 2,
    "layer_norm_act": 2,
    "layer_norm_act_backward": 2,
    "appearance_mlp": 3,
    "appearance_mlp_backward": 6,
    "loss_l1": 2,
    "native_batch_norm": 2,
    "native_batch_norm_backward": 2,
}
"""Kernels of an operator that is more than one: those of the Triton bodies for channels_last, and PyTorch's."""


class Work(NamedTuple):
    """Kernels under a name and the bytes that they move together."""

    name: str
    kernels: int
    bytes: int


def size(*tensors: Any) -> int:
    """Bytes of the tensors among the arguments, however nested."""
    found = (x for x in tree_leaves(tensors) if isinstance(x, torch.Tensor))
    return sum(x.numel() * x.element_size() for x in found)


def work(name: str, given: dict[str, Any], made: Any) -> list[Work]:
    """What a GPU does for one operator, called with these arguments by name."""
    if name in ("convolution", "conv3x3"):
        x, weight, bias = given.get("input", given.get("x")), given["weight"], given["bias"]
        found = [Work(name, 1, size(x, weight, made)), *copies(x, weight)]
        return found if bias is None else [*found, Work("bias of a convolution", 1, size(bias, made, made))]
    if name == "convolution_backward":
        grad, x, weight = given["grad_output"], given["input"], given["weight"]
        grad_x, grad_weight, grad_bias = made
        found = copies(grad, x, weight)
        if grad_x is not None:
            found.append(Work(name, 1, size(grad, weight, grad_x)))
        if grad_weight is not None:
            found.append(Work(name, 1, size(grad, x, grad_weight)))
        if grad_bias is not None:
            found.append(Work("gradient of a bias", 1, size(grad, grad_bias)))
        return found
    again: tuple = ()
    kernels = KERNELS.get(name, 1)
    if name.startswith("batch_norm_act"):
        kernels = batch_norm_act.kernels_of(given["x"], given["groups"])[name.endswith("backward")]
    if name in ("batch_norm_act", "adain_act", "layer_norm_act"):
        again = (given["x"],)
    elif name == "act_pad_backward" and given["bias_dtype"] is not None:
        kernels = 2
    elif name in ("adain_act_backward", "layer_norm_act_backward"):
        again = given["grad_y"], given["x"]
        kernels += name.startswith("layer") and given["bias"] is not None
    elif name == "batch_norm_act_backward":
        # the ReLU's side is found from x unless there was a residual; the first pass leaves the masked gradient for the
        # last one where a residual wants it
        if not given["relu"] or given["bias"] is not None:
            given = given | {"y": None}
        passed = made[3] if given["needs_residual"] else [given[k] for k in ("grad_y", "grad_again", "y")]
        again = given["x"], passed
    if name.startswith("batch_norm_act") and batch_norm_act.reads_once(given["x"], given["groups"]):
        again = ()
    return [Work(name, kernels, size(given, made, again))]


def copies(*tensors: torch.Tensor) -> list[Work]:
    """A convolution's arguments that are not dense in channels_last, each read and written once."""
    others = [x for x in tensors if not x.is_contiguous(memory_format=torch.channels_last)]
    return [Work("layout copies", 1, 2 * size(x)) for x in others]


class Count(TorchDispatchMode):
    """``calls``, kernels on a GPU, and ``bytes`` by (part of the step, operator)."""

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
            known = func._schema.arguments
            # what equals its default may be left out
            given = {one.name: one.default_value for one in known if one.has_default_value()}
            given |= dict(zip((one.name for one in known), args, strict=False)) | (kwargs or {})
            for label, kernels, moved in work(name, given, made):
                self.calls[self._parts[-1], label] += kernels
                self.bytes[self._parts[-1], label] += moved
        return made


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """A CPU's autocast pads in float32, a GPU's in what comes; the rest as at the top of this file."""
    pad = F.pad

    def padded(x, amounts, mode="constant", value=None):  # noqa: ANN001, ANN202
        if mode == "replicate":
            return _Replicated.apply(x, amounts[0])
        with torch.autocast("cpu", enabled=False):
            return pad(x, amounts, mode, value)

    def shuffled(x, factor):  # noqa: ANN001, ANN202
        parts = x.unflatten(1, (-1, factor, factor)).permute(0, 1, 4, 2, 5, 3)
        return parts.contiguous().flatten(4, 5).flatten(2, 3)

    with (
        mock.patch.object(F, "pad", padded),
        mock.patch.object(F, "pixel_shuffle", shuffled),
        mock.patch("dgnet_fast.ops.conv3x3._FILTERED", ()),
        mock.patch("dgnet_fast.ops.conv3x3._AMX", False),
        mock.patch("dgnet_fast.models.layers.follower_adds_bias", lambda _: True),
        mock.patch("dgnet_fast.models.decoder.follower_adds_bias", lambda _: True),
        mock.patch("dgnet_fast.ops.upsample_conv.in_one_pass", lambda _: True),
        mock.patch("dgnet_fast.training.losses._fused", lambda _: True),
    ):
        yield


def count(args: argparse.Namespace, *, train_encoder: bool) -> Count:
    """One step with the options of `benchmarks.step`, losses checked as on a GPU."""
    config = step_config(args)
    counted = Count()
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_a_gpu():
        model = DGNet(config, [build_teacher(config, 1)])
        for module in model.modules():  # by hand, since `Module.to` refuses fake weights
            for name, weight in module.named_parameters(recurse=False):
                if weight.ndim == 4:
                    last = weight.detach().to(memory_format=torch.channels_last)
                    setattr(module, name, nn.Parameter(last, requires_grad=weight.requires_grad))
        batch = random_batch(config, 0, "cpu")
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
    """A table by part (column 0) or operator (1), most kernels first."""
    calls: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for key, number in counted.calls.items():
        calls[key[column]] += number
        moved[key[column]] += counted.bytes[key]
    lines = [f"| {('part', 'operator')[column]} | kernels | GB |", "|---|--:|--:|"]
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
            f"\n{sum(counted.calls.values())} kernels, {sum(counted.bytes.values()) / 1e9:.1f} GB: "
            f"batch {args.batch}, {args.height}x{args.width}, {args.precision}, {args.ramps} the ramps, "
            f"structure reconstruction through {'E_s in training' if train_encoder else 'a frozen E_s'}\n"
        )
        print("\n".join([*rows(counted, 0), "", *rows(counted, 1)[:27]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
