"""Triton body of `batch_norm_act`; the definition is in dgnet_fast/ops/batch_norm_act.py.

`forward` and `backward` take what the op prepared and allocated, by its names: tensors dense in NCHW or channels_last
order, weight and bias float32 and contiguous. The batch is cut into units whose pixels are neighbours: in channels_last
a unit is a group, its samples' pixels being one table of rows, in NCHW a sample. A first kernel leaves the sums
of each slice of a unit in a workspace, a second merges those of a group and channel in a fixed order, a third
writes the result. No atomics: results are the same from run to run.

Statistics are taken about a value of the channel (its group's first), by Welford's running mean within a
program and by Chan's formula between programs, so that a mean far from zero costs no accuracy.

Device memory traffic for n bytes of x; the minimum reads each input and writes each output once:

| | minimum | here |
|---|---|---|
| forward | 2n | 3n |
| ... with a residual | 3n | 4n |
| backward | 4n | 7n |
| ... without ReLU | 3n | 5n |
| ... with a gradient of the residual | 5n | 7n |

The last is no more than without one because the first pass leaves that gradient, the masked grad_y, for the
third to read in place of grad_y and y. The third kernel begins with what the first read last, which the L2 cache
may still hold (50 MB on an H100; E_a's largest x is 34 MB of bfloat16 at four groups of 8): that much is counted
above and not read. The workspace is at most 1 MB each for sums and squares.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from dgnet_fast.kernels.slices import Slices, bounds, columns_of, offset, tile
from torch import Tensor

# Elements of a tile, 16 a thread, and at least so many a program: fewer programs leave less to merge.
TILE = 2048
SLICE_ELEMENTS = 8192
# In channels_last 64 channels are a line of 128 bytes in bfloat16.
COLUMNS = 64
# Two to three rounds of what an H100's 132 multiprocessors hold, 6 to 8 blocks of 128 threads each.
MOST_PROGRAMS = 2048
# Elements of the workspace that a merging program reads at a time, and the most channels it serves.
MERGE = 4096
MERGE_COLUMNS = 64


@triton.jit
def _values(pointer, at, mask):
    return tl.load(pointer + at, mask, other=0.0).to(tl.float32)


@triton.jit
def _pivot(x_ptr, group, channel, units, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """The group's first value of each channel."""
    at = group.to(tl.int64) * units * pixels * channels
    at += channel if CHANNELS_LAST else channel.to(tl.int64) * pixels
    return _values(x_ptr, at, channel < channels)


@triton.jit
def _part(unit, index, channel, channels):
    """Where the partial sums of a unit's slice are: two for each channel, `channels` apart."""
    return (unit * tl.num_programs(0) + index) * 2 * channels + channel


@triton.jit
def forward_sums(
    x_ptr, parts_ptr, units, channels, pixels, slice_pixels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Leaves the mean less the pivot, and the sum of squares about it, of each slice and channel.

    Every lane of the tile keeps a running mean and sum of squares, so that x is read once; masked lanes come
    last and change nothing.
    """
    unit, index, first, last = bounds(pixels, slice_pixels, False)
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    pivot = _pivot(x_ptr, unit // units, channel, units, channels, pixels, CHANNELS_LAST)
    x_ptr += unit * pixels * channels
    mean = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        x = _values(x_ptr, offset(pixel, channel, pixels, channels, CHANNELS_LAST), mask) - pivot
        difference = tl.where(mask, x - mean, 0.0)
        mean += difference * (1.0 / ((start - first) // ROWS + 1).to(tl.float32))
        squares += difference * (x - mean)
    row = tl.arange(0, ROWS)[:, None]
    count = tl.maximum(0, (last - first - row + ROWS - 1) // ROWS).to(tl.float32)
    whole = tl.sum(mean * count, 0)[None, :] / (last - first)
    apart = mean - whole
    to = parts_ptr + _part(unit, index, channel, channels)
    tl.store(to, whole, channel < channels)
    tl.store(to + channels, tl.sum(squares + count * apart * apart, 0)[None, :], channel < channels)


@triton.jit
def _merge(parts_ptr, group, parts, channels, COLUMNS: tl.constexpr):
    """What a merging program serves: its channels, their mask, and the group's part of the workspace."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return channel, channel < channels, parts_ptr + group.to(tl.int64) * parts * 2 * channels


@triton.jit
def forward_merge(
    x_ptr, parts_ptr, mean_ptr, var_ptr, elements, parts, slices, units, channels, pixels, slice_pixels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of a group's channels from its `parts` partial statistics."""
    group = tl.program_id(1)
    channel, inside, parts_ptr = _merge(parts_ptr, group, parts, channels, COLUMNS)
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
    pivot = _pivot(x_ptr, group, channel, units, channels, pixels, CHANNELS_LAST)
    tl.store(mean_ptr + group * channels + channel, pivot + mean, inside)
    tl.store(var_ptr + group * channels + channel, tl.sum(sums, 0)[None, :] / elements, inside)


@triton.jit
def forward_apply(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, mean_ptr, var_ptr, units, channels, pixels,
    slice_pixels, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    unit, index, first, last = bounds(pixels, slice_pixels, True)
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    code, inside = unit // units * channels + channel, channel < channels
    mean = tl.load(mean_ptr + code, inside, other=0.0)
    factor = tl.load(weight_ptr + channel, inside, other=0.0)
    factor = factor / tl.sqrt(tl.load(var_ptr + code, inside, other=0.0) + eps)
    shift = tl.load(bias_ptr + channel, inside, other=0.0)
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        at = unit * pixels * channels + offset(pixel, channel, pixels, channels, CHANNELS_LAST)
        z = (_values(x_ptr, at, mask) - mean) * factor + shift
        if residual_ptr is not None:
            z += _values(residual_ptr, at, mask)
        if RELU:
            z = tl.where(z <= 0, 0.0, z)  # NaN passes
        tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def _grad_z(grad_y_ptr, y_ptr, at, mask):
    """The gradient before the ReLU, 0 outside the mask; without a ReLU y is None."""
    grad = _values(grad_y_ptr, at, mask)
    if y_ptr is not None:
        grad = tl.where(_values(y_ptr, at, mask) <= 0, 0.0, grad)
    return grad


@triton.jit
def backward_sums(
    grad_y_ptr, y_ptr, x_ptr, mean_ptr, grad_residual_ptr, parts_ptr, units, channels, pixels, slice_pixels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Leaves sums of the gradient before the ReLU, plain and times centred x, and writes grad_residual."""
    unit, index, first, last = bounds(pixels, slice_pixels, False)
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    mean = tl.load(mean_ptr + unit // units * channels + channel, channel < channels, other=0.0)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        at = unit * pixels * channels + offset(pixel, channel, pixels, channels, CHANNELS_LAST)
        grad = _grad_z(grad_y_ptr, y_ptr, at, mask)
        if grad_residual_ptr is not None:
            tl.store(grad_residual_ptr + at, grad.to(grad_residual_ptr.dtype.element_ty), mask)
        sums += grad
        products += grad * (_values(x_ptr, at, mask) - mean)
    to = parts_ptr + _part(unit, index, channel, channels)
    tl.store(to, tl.sum(sums, 0)[None, :], channel < channels)
    tl.store(to + channels, tl.sum(products, 0)[None, :], channel < channels)


@triton.jit
def backward_merge(parts_ptr, sums_ptr, parts, groups, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums (2, groups, channels) from the `parts` partial ones of each group."""
    group = tl.program_id(1)
    channel, inside, parts_ptr = _merge(parts_ptr, group, parts, channels, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, parts, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
        mask = (part < parts) & inside
        at = parts_ptr + part * 2 * channels + channel
        sums += tl.load(at, mask, other=0.0)
        products += tl.load(at + channels, mask, other=0.0)
    to = sums_ptr + group * channels + channel
    tl.store(to, tl.sum(sums, 0)[None, :], inside)
    tl.store(to + groups * channels, tl.sum(products, 0)[None, :], inside)


@triton.jit
def backward_apply(
    grad_y_ptr, y_ptr, x_ptr, weight_ptr, mean_ptr, var_ptr, sums_ptr, grad_x_ptr, grad_weight_ptr,
    grad_bias_ptr, elements, groups, units, channels, pixels, slice_pixels, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Writes a slice of grad_x; the first slice's programs add up the groups' gradients of weight and bias."""
    unit, index, first, last = bounds(pixels, slice_pixels, True)
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    inside = channel < channels
    products_ptr = sums_ptr + groups * channels
    if (unit == 0) & (index == 0):
        grad_weight = tl.zeros([1, COLUMNS], tl.float32)
        grad_bias = tl.zeros([1, COLUMNS], tl.float32)
        for group in range(0, groups):
            code = group * channels + channel
            deviation = tl.sqrt(tl.load(var_ptr + code, inside, other=0.0) + eps)
            grad_weight += tl.load(products_ptr + code, inside, other=0.0) / deviation
            grad_bias += tl.load(sums_ptr + code, inside, other=0.0)
        tl.store(grad_weight_ptr + channel, grad_weight, inside)
        tl.store(grad_bias_ptr + channel, grad_bias, inside)

    code = unit // units * channels + channel
    mean = tl.load(mean_ptr + code, inside, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.load(var_ptr + code, inside, other=0.0) + eps)
    scale = tl.load(weight_ptr + channel, inside, other=0.0) * rstd
    level = tl.load(sums_ptr + code, inside, other=0.0) / elements
    slope = tl.load(products_ptr + code, inside, other=0.0) / elements * rstd * rstd
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        at = unit * pixels * channels + offset(pixel, channel, pixels, channels, CHANNELS_LAST)
        grad = _grad_z(grad_y_ptr, y_ptr, at, mask)
        grad_x = (grad - level - (_values(x_ptr, at, mask) - mean) * slope) * scale
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask)


class _Launch:
    """How x (B, C, H, W) in groups is cut: grids, tiles and the sizes that kernels take."""

    def __init__(self, x: Tensor, groups: int) -> None:
        batch, channels, height, width = x.shape
        channels_last = not x.is_contiguous()
        self.units = 1 if channels_last else batch // groups
        pixels = height * width * (batch // groups if channels_last else 1)
        widest = triton.next_power_of_2(channels)
        columns = columns_of(channels, pixels, channels_last, widest=COLUMNS, tile=TILE)
        blocks = triton.cdiv(channels, columns) * groups * self.units
        self.slices = Slices(
            groups * self.units, channels, pixels, columns=columns,
            tile=TILE, slice_elements=SLICE_ELEMENTS, most=max(1, MOST_PROGRAMS // blocks),
        )  # fmt: skip
        self.grid = self.slices.grid
        self.elements = float(self.units * pixels)  # of a group's channel
        self.sizes = (self.units, channels, pixels, self.slices.pixels)
        self.tile = {"CHANNELS_LAST": channels_last, **self.slices.tile}
        self.parts = self.units * self.slices.count
        columns = min(MERGE_COLUMNS, widest, max(4, MERGE // triton.next_power_of_2(self.parts)))
        self.merge = {"ROWS": min(MERGE // columns, triton.next_power_of_2(self.parts)), "COLUMNS": columns}
        self.merge_grid = (triton.cdiv(channels, columns), groups)
        self.workspace = torch.empty((groups * self.parts, 2, channels), dtype=torch.float32, device=x.device)


def forward(a: SimpleNamespace) -> None:
    """Fills y, mean and var."""
    cut = _Launch(a.x, a.groups)
    forward_sums[cut.grid](a.x, cut.workspace, *cut.sizes, **cut.tile)
    forward_merge[cut.merge_grid](
        a.x, cut.workspace, a.mean, a.var, cut.elements, cut.parts, cut.slices.count, *cut.sizes,
        CHANNELS_LAST=cut.tile["CHANNELS_LAST"], **cut.merge,
    )  # fmt: skip
    forward_apply[cut.grid](
        a.x, a.weight, a.bias, a.residual, a.y, a.mean, a.var, *cut.sizes, a.eps, RELU=a.relu, **cut.tile
    )


def backward(a: SimpleNamespace) -> None:
    """Fills grad_x, grad_weight and grad_bias, and grad_residual unless it is empty."""
    cut = _Launch(a.x, a.groups)
    grad_residual = a.grad_residual if a.grad_residual.numel() else None
    sums = torch.empty((2, *a.mean.shape), dtype=torch.float32, device=a.x.device)
    sign = a.y if a.relu else None
    backward_sums[cut.grid](a.grad_y, sign, a.x, a.mean, grad_residual, cut.workspace, *cut.sizes, **cut.tile)
    backward_merge[cut.merge_grid](cut.workspace, sums, cut.parts, a.groups, a.x.shape[1], **cut.merge)
    passed = (a.grad_y, sign) if grad_residual is None else (grad_residual, None)
    backward_apply[cut.grid](
        *passed, a.x, a.weight, a.mean, a.var, sums, a.grad_x, a.grad_weight, a.grad_bias, cut.elements,
        a.groups, *cut.sizes, a.eps, **cut.tile,
    )  # fmt: skip
