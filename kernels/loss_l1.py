"""Triton bodies of loss_l1: sums and signs of all pairs in one launch, all gradients in another.

The grid is (slices of a stream, streams, pairs); slices are of one length whatever the pair, and a program of a
shorter pair has nothing to do. A kernel takes MOST pairs as arguments of their own, since each may have its own
dtypes; more pairs take more launches. Shapes of pictures are constants, so that no index is divided at run time.
Partial sums lie apart and are added by torch, so that equal inputs give equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dgnet_fast.kernels.lists import numbered
from torch import Tensor

BLOCK = 1024  # elements whose signs lie together, as in dgnet_fast/ops/loss_l1.py
SIGN_BYTES = BLOCK // 4
ROWS = 4  # blocks at a time: eight bfloat16 a thread and load
SLICE_BLOCKS = 16  # of a program: the largest pair of a step (structure codes, batch 8) is 256 programs
MOST = 6

QUARTERS = tl.constexpr(4)


@triton.jit
def _position(row, column, part, QUARTER: tl.constexpr):
    """Index in a stream of the element whose sign is number `part` in byte `column` of block `row`."""
    return (row * 4 + part) * QUARTER + column


@triton.jit
def _crossed(index, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, CROSSING: tl.constexpr):
    """Where the target of a prediction's element lies: 1 from pixels to planes, 2 from planes to pixels."""
    if CROSSING == 0:
        return index
    picture = index // (CHANNELS * PIXELS) * (CHANNELS * PIXELS)
    if CROSSING == 1:
        return picture + index % CHANNELS * PIXELS + (index - picture) // CHANNELS
    return picture + index % PIXELS * CHANNELS + (index - picture) // PIXELS


@triton.jit
def _forward_pair(
    x_ptr, target_ptr, signs_ptr, sum_ptr, elements, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    CROSSING: tl.constexpr, SLICE: tl.constexpr, STEP: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    """A slice's part of a stream's mean, and the signs of the slice."""
    stream = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(elements, QUARTERS * QUARTER)
    x_ptr += stream * elements
    target_ptr += stream * elements
    signs_ptr += stream * blocks * QUARTER
    column = tl.arange(0, QUARTER)[None, :]
    first = tl.program_id(0) * SLICE
    total = tl.zeros([STEP, QUARTER], tl.float32)
    for start in range(first, tl.minimum(first + SLICE, blocks), STEP):
        row = start + tl.arange(0, STEP)[:, None]
        codes = tl.zeros([STEP, QUARTER], tl.int32)
        for part in tl.static_range(QUARTERS):
            index = _position(row, column, part, QUARTER)
            mask = index < elements
            x = tl.load(x_ptr + index, mask, other=0.0).to(tl.float32)
            crossed = _crossed(index, CHANNELS, PIXELS, CROSSING)
            difference = x - tl.load(target_ptr + crossed, mask, other=0.0).to(tl.float32)
            total += tl.abs(difference)
            code = (difference > 0).to(tl.int32) | ((difference < 0).to(tl.int32) << 1)
            codes |= code << (2 * part)
        inside = row < blocks
        tl.store(signs_ptr + row * QUARTER + column, codes.to(tl.uint8), inside)
    tl.store(sum_ptr, tl.sum(total) / elements)


@triton.jit
def forward_pairs(
    x0, x1, x2, x3, x4, x5, target0, target1, target2, target3, target4, target5, signs0, signs1, signs2,
    signs3, signs4, signs5, elements0, elements1, elements2, elements3, elements4, elements5, sums_ptr,
    CHANNELS0: tl.constexpr, CHANNELS1: tl.constexpr, CHANNELS2: tl.constexpr, CHANNELS3: tl.constexpr,
    CHANNELS4: tl.constexpr, CHANNELS5: tl.constexpr, PIXELS0: tl.constexpr, PIXELS1: tl.constexpr,
    PIXELS2: tl.constexpr, PIXELS3: tl.constexpr, PIXELS4: tl.constexpr, PIXELS5: tl.constexpr,
    CROSSING0: tl.constexpr, CROSSING1: tl.constexpr, CROSSING2: tl.constexpr,
    CROSSING3: tl.constexpr, CROSSING4: tl.constexpr, CROSSING5: tl.constexpr, SLICE: tl.constexpr,
    STEP: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    """Parts of the means in `sums` (pairs, streams, slices), 0 of slices that a pair does not have."""
    pair = tl.program_id(2)
    sum_ptr = (
        sums_ptr + (pair * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    )
    if pair == 0:
        _forward_pair(
            x0, target0, signs0, sum_ptr, elements0, CHANNELS0, PIXELS0, CROSSING0, SLICE, STEP, QUARTER
        )
    if x1 is not None:
        if pair == 1:
            _forward_pair(
                x1, target1, signs1, sum_ptr, elements1, CHANNELS1, PIXELS1, CROSSING1, SLICE, STEP, QUARTER
            )
    if x2 is not None:
        if pair == 2:
            _forward_pair(
                x2, target2, signs2, sum_ptr, elements2, CHANNELS2, PIXELS2, CROSSING2, SLICE, STEP, QUARTER
            )
    if x3 is not None:
        if pair == 3:
            _forward_pair(
                x3, target3, signs3, sum_ptr, elements3, CHANNELS3, PIXELS3, CROSSING3, SLICE, STEP, QUARTER
            )
    if x4 is not None:
        if pair == 4:
            _forward_pair(
                x4, target4, signs4, sum_ptr, elements4, CHANNELS4, PIXELS4, CROSSING4, SLICE, STEP, QUARTER
            )
    if x5 is not None:
        if pair == 5:
            _forward_pair(
                x5, target5, signs5, sum_ptr, elements5, CHANNELS5, PIXELS5, CROSSING5, SLICE, STEP, QUARTER
            )


@triton.jit
def _backward_pair(
    grad_x_ptr, signs_ptr, grad_ptr, elements, SLICE: tl.constexpr, STEP: tl.constexpr, QUARTER: tl.constexpr
):
    """A slice of a pair's gradient."""
    stream = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(elements, QUARTERS * QUARTER)
    grad_x_ptr += stream * elements
    signs_ptr += stream * blocks * QUARTER
    scale = tl.load(grad_ptr) / elements
    column = tl.arange(0, QUARTER)[None, :]
    first = tl.program_id(0) * SLICE
    for start in range(first, tl.minimum(first + SLICE, blocks), STEP):
        row = start + tl.arange(0, STEP)[:, None]
        inside = row < blocks
        codes = tl.load(signs_ptr + row * QUARTER + column, inside, other=0).to(tl.int32)
        for part in tl.static_range(QUARTERS):
            index = _position(row, column, part, QUARTER)
            code = codes >> (2 * part)
            sign = ((code & 1) - ((code >> 1) & 1)).to(tl.float32)
            tl.store(grad_x_ptr + index, (sign * scale).to(grad_x_ptr.dtype.element_ty), index < elements)


@triton.jit
def backward_pairs(
    grad_x0, grad_x1, grad_x2, grad_x3, grad_x4, grad_x5, signs0, signs1, signs2, signs3, signs4, signs5,
    elements0, elements1, elements2, elements3, elements4, elements5, grad_ptr, SLICE: tl.constexpr,
    STEP: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    """Gradients of the pairs that have somewhere to put them."""
    pair = tl.program_id(2)
    grad_ptr += pair * tl.num_programs(1) + tl.program_id(1)
    if grad_x0 is not None:
        if pair == 0:
            _backward_pair(grad_x0, signs0, grad_ptr, elements0, SLICE, STEP, QUARTER)
    if grad_x1 is not None:
        if pair == 1:
            _backward_pair(grad_x1, signs1, grad_ptr, elements1, SLICE, STEP, QUARTER)
    if grad_x2 is not None:
        if pair == 2:
            _backward_pair(grad_x2, signs2, grad_ptr, elements2, SLICE, STEP, QUARTER)
    if grad_x3 is not None:
        if pair == 3:
            _backward_pair(grad_x3, signs3, grad_ptr, elements3, SLICE, STEP, QUARTER)
    if grad_x4 is not None:
        if pair == 4:
            _backward_pair(grad_x4, signs4, grad_ptr, elements4, SLICE, STEP, QUARTER)
    if grad_x5 is not None:
        if pair == 5:
            _backward_pair(grad_x5, signs5, grad_ptr, elements5, SLICE, STEP, QUARTER)


def _slices(elements: list[int]) -> int:
    """Programs that the longest stream needs."""
    assert max(elements) < 2**31 - SLICE_BLOCKS * BLOCK, elements
    return triton.cdiv(max(elements), SLICE_BLOCKS * BLOCK)


CONSTANTS = {"SLICE": SLICE_BLOCKS, "STEP": ROWS, "QUARTER": SIGN_BYTES}


def forward(pairs: list, signs: list[Tensor]) -> Tensor:
    """Means (P, S), float32; `pairs` are (prediction, target, channels, pixels, crossing), each dense (S, elements).

    The signs are written to `signs`, one tensor a pair.
    """
    means = []
    for start in range(0, len(pairs), MOST):
        some = pairs[start : start + MOST]
        predictions, targets, channels, pixels, crossings = (
            list(column) for column in zip(*some, strict=True)
        )
        streams, elements = predictions[0].shape[0], [x.shape[1] for x in predictions]
        slices = _slices(elements)
        sums = torch.empty((len(some), streams, slices), dtype=torch.float32, device=signs[0].device)
        forward_pairs[(slices, streams, len(some))](
            **numbered(
                MOST, x=predictions, target=targets, signs=signs[start : start + MOST], elements=elements,
                CHANNELS=channels, PIXELS=pixels, CROSSING=crossings,
            ),
            sums_ptr=sums, **CONSTANTS,
        )  # fmt: skip
        means.append(sums.sum(dim=2))
    return means[0] if len(means) == 1 else torch.cat(means)


def backward(grad: Tensor, signs: list[Tensor], gradients: list[Tensor]) -> None:
    """Fills `gradients` (S, elements) from the gradient (P, S) of the means; empty ones are not wanted."""
    for start in range(0, len(gradients), MOST):
        some = gradients[start : start + MOST]
        wanted = [x if x.numel() else None for x in some]
        elements = [x.shape[1] if x.numel() else None for x in some]
        if not any(elements):
            continue
        backward_pairs[(_slices([n for n in elements if n]), grad.shape[1], len(some))](
            **numbered(MOST, grad_x=wanted, signs=signs[start : start + MOST], elements=elements),
            grad_ptr=grad[start:], **CONSTANTS,
        )  # fmt: skip
