"""Triton bodies of loss_l1: sums and signs of all pairs in one launch, all gradients in another.

The grid is (slices of a stream, streams, pairs); slices are of one length whatever the pair, and a program of a
shorter pair has nothing to do. A kernel takes tuples with an entry for each pair, since each may have its own dtypes.
Shapes of pictures are constants, so that no index is divided at run time.
Partial sums lie apart and are added by torch, so that equal inputs give equal bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
import triton
import triton.language as tl

BLOCK = 1024  # elements whose signs lie together, as in dgnet_fast/ops/loss_l1.py
SIGN_BYTES = BLOCK // 4
ROWS = 4  # blocks at a time: eight bfloat16 a thread and load
SLICE_BLOCKS = 16  # of a program: the largest pair of a step (structure codes, batch 8) is 256 programs

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
    xs, targets, signs, elements, sums_ptr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, CROSSING: tl.constexpr,
    SLICE: tl.constexpr, STEP: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    """Parts of the means in `sums` (pairs, streams, slices), 0 of slices that a pair does not have."""
    pair = tl.program_id(2)
    sum_ptr = (
        sums_ptr + (pair * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    )
    for k in tl.static_range(len(xs)):
        if pair == k:
            _forward_pair(
                xs[k], targets[k], signs[k], sum_ptr, elements[k], CHANNELS[k], PIXELS[k], CROSSING[k],
                SLICE, STEP, QUARTER,
            )  # fmt: skip


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
    grad_xs, signs, elements, grad_ptr, SLICE: tl.constexpr, STEP: tl.constexpr, QUARTER: tl.constexpr
):
    """Gradients of the pairs that have somewhere to put them."""
    pair = tl.program_id(2)
    grad_ptr += pair * tl.num_programs(1) + tl.program_id(1)
    for k in tl.static_range(len(signs)):  # Triton 3.6 cannot take the length of a tuple with None in it
        if grad_xs[k] is not None:
            if pair == k:
                _backward_pair(grad_xs[k], signs[k], grad_ptr, elements[k], SLICE, STEP, QUARTER)


def _slices(elements: Sequence[int]) -> int:
    """Programs that the longest stream needs."""
    assert max(elements) < 2**31 - SLICE_BLOCKS * BLOCK, elements
    return triton.cdiv(max(elements), SLICE_BLOCKS * BLOCK)


CONSTANTS = {"SLICE": SLICE_BLOCKS, "STEP": ROWS, "QUARTER": SIGN_BYTES}


def forward(a: SimpleNamespace) -> None:
    """Fills means (P, S), and the signs in `parts`, one tensor a pair.

    `pairs` are (prediction, target, channels, pixels, crossing), both dense (S, elements).
    """
    xs, targets, channels, pixels, crossings = zip(*a.pairs, strict=True)
    streams, elements = xs[0].shape[0], tuple(x.shape[1] for x in xs)
    slices = _slices(elements)
    sums = torch.empty((len(xs), streams, slices), dtype=torch.float32, device=a.signs.device)
    forward_pairs[(slices, streams, len(xs))](
        xs,
        targets,
        a.parts,
        elements,
        sums,
        CHANNELS=channels,
        PIXELS=pixels,
        CROSSING=crossings,
        **CONSTANTS,
    )
    torch.sum(sums, dim=2, out=a.means)


def backward(a: SimpleNamespace) -> None:
    """Fills `gradients` (S, elements) from the gradient (P, S) of the means; empty ones are not wanted."""
    wanted = tuple(x if x.numel() else None for x in a.gradients)
    elements = tuple(x.shape[1] if x.numel() else None for x in a.gradients)
    if any(elements):
        slices = _slices([n for n in elements if n])
        grid = (slices, a.grad.shape[1], len(wanted))
        backward_pairs[grid](wanted, a.parts, elements, a.grad, **CONSTANTS)
