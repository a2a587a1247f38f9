"""Triton bodies of loss_adversarial: the sum over all maps in one launch, all gradients in another.

Forward, a program serves a whole stream, map after map: three scales at batch 8 are 21 504 scores a stream, in
pieces of BLOCK. Backward, a program serves a piece of one stream of one map. A kernel takes MOST maps as arguments
of their own, since each may have its own dtype; more maps take more launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dgnet_fast.kernels.lists import numbered
from torch import Tensor

BLOCK = 4096  # 8 a thread; 16 a thread spilled on sm_80
PIECE = 1024  # of the backward
MOST = 6
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
    x0, x1, x2, x3, x4, x5, size0, size1, size2, size3, size4, size5, loss_ptr, weight, drift,
    REAL0: tl.constexpr, REAL1: tl.constexpr, REAL2: tl.constexpr, REAL3: tl.constexpr, REAL4: tl.constexpr,
    REAL5: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss of a stream."""
    total = _stream_sum(x0, size0, drift, KIND, REAL0, BLOCK)
    if x1 is not None:
        total += _stream_sum(x1, size1, drift, KIND, REAL1, BLOCK)
    if x2 is not None:
        total += _stream_sum(x2, size2, drift, KIND, REAL2, BLOCK)
    if x3 is not None:
        total += _stream_sum(x3, size3, drift, KIND, REAL3, BLOCK)
    if x4 is not None:
        total += _stream_sum(x4, size4, drift, KIND, REAL4, BLOCK)
    if x5 is not None:
        total += _stream_sum(x5, size5, drift, KIND, REAL5, BLOCK)
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
    grad_x0, grad_x1, grad_x2, grad_x3, grad_x4, grad_x5, x0, x1, x2, x3, x4, x5, size0, size1, size2, size3,
    size4, size5, grad_ptr, weight, drift, REAL0: tl.constexpr, REAL1: tl.constexpr, REAL2: tl.constexpr,
    REAL3: tl.constexpr, REAL4: tl.constexpr, REAL5: tl.constexpr, KIND: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Gradients of the maps that have somewhere to put them; programs beyond a map's end have nothing to do."""
    k = tl.program_id(2)
    factor = tl.load(grad_ptr + tl.program_id(1)) * weight
    if grad_x0 is not None:
        if k == 0:
            _slopes(grad_x0, x0, size0, factor, drift, KIND, REAL0, PIECE)
    if grad_x1 is not None:
        if k == 1:
            _slopes(grad_x1, x1, size1, factor, drift, KIND, REAL1, PIECE)
    if grad_x2 is not None:
        if k == 2:
            _slopes(grad_x2, x2, size2, factor, drift, KIND, REAL2, PIECE)
    if grad_x3 is not None:
        if k == 3:
            _slopes(grad_x3, x3, size3, factor, drift, KIND, REAL3, PIECE)
    if grad_x4 is not None:
        if k == 4:
            _slopes(grad_x4, x4, size4, factor, drift, KIND, REAL4, PIECE)
    if grad_x5 is not None:
        if k == 5:
            _slopes(grad_x5, x5, size5, factor, drift, KIND, REAL5, PIECE)


def _sizes(scores: list[Tensor]) -> list[int]:
    return [x.numel() // x.shape[0] for x in scores]


def forward(scores: list[Tensor], real: list[bool], kind: str, weight: float, drift: float) -> Tensor:
    """The loss (S,), float32, of contiguous maps (S, B, ...)."""
    parts = []
    for start in range(0, len(scores), MOST):
        some = slice(start, start + MOST)
        loss = torch.empty(scores[0].shape[0], dtype=torch.float32, device=scores[0].device)
        forward_maps[(len(loss),)](
            **numbered(MOST, x=scores[some], size=_sizes(scores[some]), REAL=real[some]),
            loss_ptr=loss, weight=float(weight), drift=drift, KIND=KINDS.index(kind), BLOCK=BLOCK, num_warps=16,
        )  # fmt: skip
        parts.append(loss)
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


def backward(
    grad: Tensor, scores: list[Tensor], real: list[bool], kind: str, weight: float, drift: float,
    gradients: list[Tensor],
) -> None:  # fmt: skip
    """Fills `gradients` from the gradient (S,) of the loss; empty ones are not wanted."""
    for start in range(0, len(scores), MOST):
        some = slice(start, start + MOST)
        wanted, sizes = [x if x.numel() else None for x in gradients[some]], _sizes(scores[some])
        if not any(x is not None for x in wanted):
            continue
        backward_maps[(triton.cdiv(max(sizes), PIECE), len(grad), len(wanted))](
            **numbered(MOST, grad_x=wanted, x=scores[some], size=sizes, REAL=real[some]),
            grad_ptr=grad, weight=float(weight), drift=drift, KIND=KINDS.index(kind), PIECE=PIECE,
        )  # fmt: skip
