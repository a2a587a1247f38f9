"""What the kernels of `batch_norm_act`'s Triton body share: partial sums, of a slice and merged in a fixed order, and the
gradient before the ReLU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from dgnet_fast.kernels.slices import offset, tile


@triton.jit
def values(pointer, at, mask):
    return tl.load(pointer + at, mask, other=0.0).to(tl.float32)


@triton.jit
def pivot_of(x_ptr, group, channel, units, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """The group's first value of each channel."""
    at = group.to(tl.int64) * units * pixels * channels
    at += channel if CHANNELS_LAST else channel.to(tl.int64) * pixels
    return values(x_ptr, at, channel < channels)


@triton.jit
def part_at(unit, index, channel, channels):
    """Where the partial sums of a unit's slice are: two for each channel, `channels` apart."""
    return (unit * tl.num_programs(0) + index) * 2 * channels + channel


@triton.jit
def slice_statistics(
    x_ptr, pivot, first, last, channels, pixels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The mean less the pivot, and the sum of squares about it, of a slice of the unit at x, (1, COLUMNS) each.

    Every lane of the tile keeps a running mean and sum of squares, so that x is read once; masked lanes come
    last and change nothing.
    """
    mean = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        x = values(x_ptr, offset(pixel, channel, pixels, channels, CHANNELS_LAST), mask) - pivot
        difference = tl.where(mask, x - mean, 0.0)
        mean += difference * (1.0 / ((start - first) // ROWS + 1).to(tl.float32))
        squares += difference * (x - mean)
    row = tl.arange(0, ROWS)[:, None]
    count = tl.maximum(0, (last - first - row + ROWS - 1) // ROWS).to(tl.float32)
    whole = tl.sum(mean * count, 0)[None, :] / (last - first)
    apart = mean - whole
    return whole, tl.sum(squares + count * apart * apart, 0)[None, :]


@triton.jit
def merged_statistics(
    parts_ptr, channel, elements, parts, slices, channels, pixels, slice_pixels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean less the pivot and biased variance of a group's channels from its `parts` partial statistics."""
    inside = channel < channels
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, parts, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
        mask = (part < parts) & inside
        count = tl.minimum(slice_pixels, pixels - part % slices * slice_pixels).to(tl.float32)
        sums += count * tl.load(parts_ptr + part * 2 * channels + channel, mask, other=0.0)
    mean = tl.sum(sums, 0)[None, :] / elements
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, parts, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
        mask = (part < parts) & inside
        count = tl.minimum(slice_pixels, pixels - part % slices * slice_pixels).to(tl.float32)
        at = parts_ptr + part * 2 * channels + channel
        apart = tl.where(mask, tl.load(at, mask, other=0.0) - mean, 0.0)
        sums += count * apart * apart + tl.load(at + channels, mask, other=0.0)
    return mean, tl.sum(sums, 0)[None, :] / elements


@triton.jit
def parts_of(parts_ptr, group, parts, channels):
    """The part of the workspace (a few MB at most) that is the group's."""
    return parts_ptr + group * parts * 2 * channels


@triton.jit
def merged_sums(parts_ptr, channel, parts, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The two sums of a group's channels from its `parts` partial ones."""
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, parts, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
        mask = (part < parts) & (channel < channels)
        at = parts_ptr + part * 2 * channels + channel
        sums += tl.load(at, mask, other=0.0)
        products += tl.load(at + channels, mask, other=0.0)
    return tl.sum(sums, 0)[None, :], tl.sum(products, 0)[None, :]


@triton.jit
def affine(weight_ptr, bias_ptr, var_ptr, code, channel, inside, eps):
    """Factor and shift of the normalised x; the shift 0 where there is no bias."""
    factor = tl.load(weight_ptr + channel, inside, other=0.0)
    factor = factor / tl.sqrt(tl.load(var_ptr + code, inside, other=0.0) + eps)
    shift = tl.zeros_like(factor)
    if bias_ptr is not None:
        shift = tl.load(bias_ptr + channel, inside, other=0.0)
    return factor, shift


@triton.jit
def grad_before_relu(
    grad_y_ptr, grad_again_ptr, y_ptr, bias_ptr, centred, factor, shift, at, mask
):  # fmt: skip
    """The gradient before the ReLU, 0 outside the mask; the ReLU's side is that of y or, with a bias, of the x that it is
    made of, and there is no ReLU where both are None.
    """
    grad = values(grad_y_ptr, at, mask)
    if grad_again_ptr is not None:
        grad += values(grad_again_ptr, at, mask)
    if y_ptr is not None:
        grad = tl.where(values(y_ptr, at, mask) <= 0, 0.0, grad)
    elif bias_ptr is not None:
        grad = tl.where(centred * factor + shift <= 0, 0.0, grad)
    return grad
