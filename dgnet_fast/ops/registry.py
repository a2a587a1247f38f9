"""Who serves what: one ordered table of op, device and body.

An op is served by the first body of its device's row that is chosen automatically for the dtype and can run
here. `DGNET_FAST_IMPL` set to reference, cpp, triton, cuda, aten or amx forces that body for every op, and whatever
it cannot serve raises; nothing falls back. `dgnet-fast doctor` prints the table as it stands on a
machine.

float64 is the reference's by rule, on every device: runs that compare numbers with another implementation use
it, gradients included, and no other body accepts it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from dgnet_fast.ops.native import _C

IMPLEMENTATIONS = ("reference", "cpp", "triton", "cuda", "aten", "amx")
FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*FAST_DTYPES, torch.float64)


@dataclass(frozen=True)
class Server:
    """A body that an op may have on a device: the attribute `name` of ops/<op>.py, as DGNET_FAST_IMPL calls it.

    `serves` are the dtypes it accepts, `automatic` those it is chosen for unasked.
    """

    name: str
    serves: tuple[torch.dtype, ...]
    automatic: tuple[torch.dtype, ...]


def _unasked(name: str) -> Server:
    return Server(name, FAST_DTYPES, automatic=FAST_DTYPES)


CPP, CUDA, TRITON, ATEN = map(_unasked, ("cpp", "cuda", "triton", "aten"))
REFERENCE = Server("reference", DTYPES, automatic=(torch.float64,))
#: Under Triton's interpreter, which is slow: for tests.
INTERPRETED = Server("triton", FAST_DTYPES, automatic=())
_CONV3X3 = (torch.float32, torch.bfloat16)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX); elsewhere it is emulated and slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _filtered() -> tuple[torch.dtype, ...]:
    """What conv3x3's filtering, which computes in float32, is faster at than PyTorch: it needs eight multiply-adds an
    instruction, and in bfloat16 a CPU that has no instructions for it.
    """
    if _C.conv3x3_lanes() < 8:
        return ()
    return _CONV3X3[:1] if cpu_multiplies_bf16() else _CONV3X3


#: TABLE[op][device type]: bodies in the order they are tried.
TABLE: dict[str, dict[str, tuple[Server, ...]]] = {
    "act_pad": {"cpu": (CPP, REFERENCE, INTERPRETED), "cuda": (TRITON, REFERENCE)},
    "adain_act": {"cpu": (CPP, REFERENCE, INTERPRETED), "cuda": (TRITON, CUDA, REFERENCE)},
    "layer_norm_act": {"cpu": (CPP, REFERENCE, INTERPRETED), "cuda": (TRITON, CUDA, REFERENCE)},
    "batch_norm_act": {"cpu": (CPP, REFERENCE, INTERPRETED), "cuda": (TRITON, CUDA, REFERENCE)},
    "conv3x3": {
        "cpu": (
            Server("amx", (torch.bfloat16,), automatic=(torch.bfloat16,)),
            Server("cpp", _CONV3X3, automatic=_filtered()),
            ATEN,
            REFERENCE,
        ),
        "cuda": (ATEN, REFERENCE),
    },
    # By name alone: on an H100 the Triton body is ahead of cuDNN forward, and far behind with its gradients.
    "conv3x3_act": {
        "cpu": (ATEN, REFERENCE, INTERPRETED),
        "cuda": (ATEN, REFERENCE, Server("triton", FAST_DTYPES, automatic=())),
    },
    # On a CPU `upsample_conv` calls plain PyTorch, which can be differentiated twice.
    "upsample_border": {"cpu": (ATEN, REFERENCE, INTERPRETED), "cuda": (TRITON, REFERENCE)},
    "upsample_weights": {"cpu": (ATEN, REFERENCE, INTERPRETED), "cuda": (TRITON, REFERENCE)},
    "loss_l1": {"cpu": (CPP, REFERENCE, INTERPRETED), "cuda": (TRITON, REFERENCE)},
    # On a CPU the objective calls the references of these two, which torch.compile then fuses.
    "loss_identity": {"cpu": (ATEN, REFERENCE, INTERPRETED), "cuda": (TRITON, REFERENCE)},
    "loss_adversarial": {"cpu": (ATEN, REFERENCE, INTERPRETED), "cuda": (TRITON, REFERENCE)},
    "appearance_mlp": {
        # Triton's interpreter has no bfloat16 products.
        "cpu": (ATEN, REFERENCE, Server("triton", (torch.float32, torch.float16), automatic=())),
        "cuda": (TRITON, REFERENCE),
    },
}


def _why_unavailable(name: str, device: str) -> str | None:
    """Why bodies called `name` cannot run on `device` in this installation; None if they can."""
    if name == "cuda" and not _C.build["cuda"]:
        return "the extension was built without nvcc"
    if name == "amx" and not _C.conv3x3_amx():
        return "this CPU has no AMX, or the extension was built without it or for a lower level"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return "triton runs on a CPU only with TRITON_INTERPRET=1"
    return None


def _dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def choose(op: str, device: str, dtype: torch.dtype) -> Server:
    """The body that serves `op` for tensors of this device type and dtype.

    Raises ValueError if DGNET_FAST_IMPL names no implementation or one that cannot serve, and if no body
    serves.
    """
    return _choose(op, device, dtype, *_asked())


def _asked() -> tuple[str, str]:
    """What the environment asks for; by `in`, for a missing name costs `get` an exception, 1 µs a call."""
    forced = os.environ["DGNET_FAST_IMPL"] if "DGNET_FAST_IMPL" in os.environ else ""
    interpret = os.environ["TRITON_INTERPRET"] if "TRITON_INTERPRET" in os.environ else ""
    return forced, interpret


@cache
def _choose(op: str, device: str, dtype: torch.dtype, forced: str, _interpret: str) -> Server:
    bodies = TABLE[op].get(device, ())
    if not bodies:
        raise ValueError(f"{op}: x is on device type {device!r}, served are {', '.join(TABLE[op])}")
    if dtype not in DTYPES:
        raise ValueError(f"{op}: x has dtype {_dtype_names((dtype,))}, served are {_dtype_names(DTYPES)}")
    if forced:
        return _forced(op, device, dtype, forced, bodies)
    reasons = []
    for body in bodies:
        if dtype in body.automatic:
            reason = _why_unavailable(body.name, device)
            if reason is None:
                return body
            reasons.append(f"{body.name}: {reason}")
    raise ValueError(
        f"{op}: nothing serves {_dtype_names((dtype,))} on {device} ({'; '.join(reasons)}); "
        "DGNET_FAST_IMPL=reference runs plain PyTorch"
    )


def _forced(op: str, device: str, dtype: torch.dtype, forced: str, bodies: tuple[Server, ...]) -> Server:
    if forced not in IMPLEMENTATIONS:
        raise ValueError(f"DGNET_FAST_IMPL={forced!r}, allowed are {', '.join(IMPLEMENTATIONS)}")
    body = next((body for body in bodies if body.name == forced), None)
    if body is None:
        names = ", ".join(body.name for body in bodies)
        raise ValueError(f"DGNET_FAST_IMPL={forced}: {op} has no such body on {device}, there are {names}")
    if dtype not in body.serves:
        raise ValueError(
            f"DGNET_FAST_IMPL={forced}: {op} is given {_dtype_names((dtype,))}, "
            f"this body serves {_dtype_names(body.serves)}"
        )
    reason = _why_unavailable(forced, device)
    if reason is not None:
        raise ValueError(f"DGNET_FAST_IMPL={forced}: {reason}")
    return body


@cache
def load(op: str, name: str) -> Any:
    """The body `name` of `op`: a namespace with `forward` and `backward`."""
    return getattr(importlib.import_module(f"dgnet_fast.ops.{op}"), name)


def implementation(op: str, device: str, dtype: torch.dtype) -> Any:
    """The chosen body; raises as `choose` does."""
    return _implementation(op, device, dtype, *_asked())


@cache
def _implementation(op: str, device: str, dtype: torch.dtype, forced: str, interpret: str) -> Any:
    return load(op, _choose(op, device, dtype, forced, interpret).name)


def served(devices: tuple[str, ...] = ("cpu", "cuda")) -> list[dict[str, str]]:
    """One row for every op, device and dtype: which body serves it here, or why none does."""
    rows = []
    for op in TABLE:
        for device in devices:
            for dtype in DTYPES:
                try:
                    body = choose(op, device, dtype).name
                except ValueError as error:
                    body = f"none ({error})"
                rows.append({"op": op, "device": device, "dtype": _dtype_names((dtype,)), "body": body})
    return rows
