"""Triton body of `upsample_weights`; the definition is in dgnet_fast/ops/upsample_weights.py.

`forward` and `backward` take what the op prepared and allocated, by its names: tensors dense in NCHW or channels_last
order. One kernel each way; a program serves a block of (output, input) channel pairs and reads their taps from the cache as
often as it needs them. No atomics: results are the same from run to run. Device memory traffic is the minimum, each tensor
once.
"""

from __future__ import annotations

from types import SimpleNamespace

import triton
import triton.language as tl

KERNEL = tl.constexpr(5)
BLOCK = 256


@triton.jit
def _pairs(pairs, channels, BLOCK: tl.constexpr):
    """Output and input channels of this program's pairs, and their mask."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return pair // channels, pair % channels, pair < pairs


@triton.jit
def _at(filter, channel, channels, tap, TAPS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offset of a tap among (filters, channels, TAPS)."""
    return (
        (filter * TAPS + tap) * channels + channel
        if CHANNELS_LAST
        else (filter * channels + channel) * TAPS + tap
    )


@triton.jit
def forward_pairs(
    weight_ptr, phases_ptr, above_ptr, below_ptr, before_ptr, behind_ptr, pairs, outputs, channels,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    filter, channel, mask = _pairs(pairs, channels, BLOCK)
    for p in tl.static_range(2):
        for q in tl.static_range(2):
            for tap in tl.static_range(9):
                total = tl.zeros([BLOCK], tl.float32)
                for u in tl.static_range(5):
                    for v in tl.static_range(5):
                        if (u + p) // 2 == tap // 3 and (v + q) // 2 == tap % 3:
                            at = _at(filter, channel, channels, u * KERNEL + v, 25, CHANNELS_LAST)
                            total += tl.load(weight_ptr + at, mask, other=0.0).to(tl.float32)
                to = _at((2 * p + q) * outputs + filter, channel, channels, tap, 9, CHANNELS_LAST)
                tl.store(phases_ptr + to, total.to(phases_ptr.dtype.element_ty), mask)
    for k in tl.static_range(5):
        to = _at(filter, channel, channels, k, 5, CHANNELS_LAST)
        for side in tl.static_range(4):
            out_ptr = (above_ptr, below_ptr, before_ptr, behind_ptr)[side]
            tap = (k, 20 + k, 5 * k, 5 * k + 4)[side]
            found = tl.load(
                weight_ptr + _at(filter, channel, channels, tap, 25, CHANNELS_LAST), mask, other=0.0
            )
            tl.store(out_ptr + to, found.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _found(grad_ptr, at, mask):
    return tl.load(grad_ptr + at, mask, other=0.0).to(tl.float32)


@triton.jit
def backward_pairs(
    phases_ptr, above_ptr, below_ptr, before_ptr, behind_ptr, grad_weight_ptr, pairs, outputs, channels,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    filter, channel, mask = _pairs(pairs, channels, BLOCK)
    for u in tl.static_range(5):
        for v in tl.static_range(5):
            total = tl.zeros([BLOCK], tl.float32)
            for p in tl.static_range(2):
                for q in tl.static_range(2):
                    tap = (u + p) // 2 * 3 + (v + q) // 2
                    at = _at((2 * p + q) * outputs + filter, channel, channels, tap, 9, CHANNELS_LAST)
                    total += _found(phases_ptr, at, mask)
            along_row = _at(filter, channel, channels, v, 5, CHANNELS_LAST)
            along_column = _at(filter, channel, channels, u, 5, CHANNELS_LAST)
            if u == 0:
                total += _found(above_ptr, along_row, mask)
            if u == 4:
                total += _found(below_ptr, along_row, mask)
            if v == 0:
                total += _found(before_ptr, along_column, mask)
            if v == 4:
                total += _found(behind_ptr, along_column, mask)
            to = _at(filter, channel, channels, u * KERNEL + v, 25, CHANNELS_LAST)
            tl.store(grad_weight_ptr + to, total.to(grad_weight_ptr.dtype.element_ty), mask)


def forward(a: SimpleNamespace) -> None:
    """Fills phases, above, below, before and behind."""
    outputs, channels = a.weight.shape[:2]
    pairs, channels_last = outputs * channels, not a.weight.is_contiguous()
    forward_pairs[(triton.cdiv(pairs, BLOCK),)](
        a.weight, a.phases, a.above, a.below, a.before, a.behind, pairs, outputs, channels,
        CHANNELS_LAST=channels_last, BLOCK=BLOCK,
    )  # fmt: skip


def backward(a: SimpleNamespace) -> None:
    """Fills grad_weight."""
    outputs, channels = a.grad_weight.shape[:2]
    pairs, channels_last = outputs * channels, not a.grad_weight.is_contiguous()
    backward_pairs[(triton.cdiv(pairs, BLOCK),)](
        a.phases, a.above, a.below, a.before, a.behind, a.grad_weight, pairs, outputs, channels,
        CHANNELS_LAST=channels_last, BLOCK=BLOCK,
    )  # fmt: skip
