"""Triton bodies of loss_adversarial: the sum over all maps in one launch, all gradients in another.

Forward, a program serves a whole stream, map after map: three scales at batch 8 are 21 504 scores a stream, in
pieces of BLOCK. Backward, a program serves a piece of one stream of one map. A kernel takes tuples with an entry for
each map, since each may have its own dtype.
"""

from __future__ import annotations

from types import SimpleNamespace

import triton
import triton.language as tl

BLOCK = 4096  # 8 a thread; 16 a thread spilled on sm_80
PIECE = 1024  # of the backward
KINDS = ("lsgan", "nsgan", "wgan")


@triton.jit
def _stream_sum(x_ptr, size, drift, KIND: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr):
    """A map's loss of a stream."""
    x_ptr += tl.program_id(0).to(tl.int64) * size
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, at < size, other=0.0).to(tl.float32)
        if KIND == 0:
            away = x - 1.0 if REAL else x
            value = away * away
        elif KIND == 1:
            value = -x if REAL else x
            value = tl.maximum(value, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
        else:
            value = (-x if REAL else x) + drift * size * x * x
        sums += tl.where(at < size, value, 0.0)
    return tl.sum(sums) / size


@triton.jit
def forward_maps(
    xs, sizes, loss_ptr, weight, drift, REAL: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    """The loss of a stream."""
    total = 0.0
    for k in tl.static_range(len(xs)):
        total += _stream_sum(xs[k], sizes[k], drift, KIND, REAL[k], BLOCK)
    tl.store(loss_ptr + tl.program_id(0), weight * total)


@triton.jit
def _slopes(
    grad_x_ptr, x_ptr, size, factor, drift, KIND: tl.constexpr, REAL: tl.constexpr, PIECE: tl.constexpr
):
    """The gradient of a piece of a map's stream."""
    at = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
    stream = tl.program_id(1).to(tl.int64) * size
    x = tl.load(x_ptr + stream + at, at < size, other=0.0).to(tl.float32)
    if KIND == 0:
        slope = 2.0 * (x - 1.0 if REAL else x) / size
    elif KIND == 1:
        slope = (-1.0 / (1.0 + tl.exp(x)) if REAL else 1.0 / (1.0 + tl.exp(-x))) / size
    else:
        slope = (-1.0 if REAL else 1.0) / size + 2.0 * drift * x
    tl.store(grad_x_ptr + stream + at, (slope * factor).to(grad_x_ptr.dtype.element_ty), at < size)


@triton.jit
def backward_maps(
    grad_xs, xs, sizes, grad_ptr, weight, drift, REAL: tl.constexpr, KIND: tl.constexpr, PIECE: tl.constexpr
):
    """Gradients of the maps that have somewhere to put them; programs beyond a map's end have nothing to do."""
    map_index = tl.program_id(2)
    factor = tl.load(grad_ptr + tl.program_id(1)) * weight
    for k in tl.static_range(len(xs)):
        if grad_xs[k] is not None:
            if map_index == k:
                _slopes(grad_xs[k], xs[k], sizes[k], factor, drift, KIND, REAL[k], PIECE)


def _sizes(a: SimpleNamespace) -> tuple[int, ...]:
    return tuple(x.numel() // x.shape[0] for x in a.scores)


def _constants(a: SimpleNamespace) -> dict:
    return {"weight": float(a.weight), "drift": a.drift, "REAL": tuple(a.real), "KIND": KINDS.index(a.kind)}


def forward(a: SimpleNamespace) -> None:
    """Fills the loss (S,) of contiguous maps (S, B, ...)."""
    forward_maps[(len(a.loss),)](
        tuple(a.scores), _sizes(a), a.loss, **_constants(a), BLOCK=BLOCK, num_warps=16
    )


def backward(a: SimpleNamespace) -> None:
    """Fills `gradients` from the gradient (S,) of the loss; empty ones are not wanted."""
    wanted, sizes = tuple(x if x.numel() else None for x in a.gradients), _sizes(a)
    if any(x is not None for x in wanted):
        grid = (triton.cdiv(max(sizes), PIECE), len(a.grad), len(wanted))
        backward_maps[grid](wanted, tuple(a.scores), sizes, a.grad, **_constants(a), PIECE=PIECE)
