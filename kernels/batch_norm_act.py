"""Triton body of `batch_norm_act`; the definition is in dgnet_fast/ops/batch_norm_act.py.

`forward` and `backward` take what the op prepared and allocated, by its names: tensors dense in NCHW or channels_last
order, weight and bias float32 and contiguous. The batch is cut into units whose pixels are neighbours: in channels_last
a unit is a group, its samples' pixels being one table of rows, in NCHW a sample. A first kernel leaves the sums
of each slice of a unit in a workspace, a last one writes the result. Those of a group and channel are merged in a fixed
order by every program of the last kernel that needs them or, where there are many, by a kernel between the two. Small
groups stay in registers (batch_norm_whole.py). No atomics: results are the same from run to run.

Statistics are taken about a value of the channel (its group's first), by Welford's running mean within a
program and by Chan's formula between programs, so that a mean far from zero costs no accuracy.

Device memory traffic for n bytes of x; the minimum, which small groups take, reads each input and writes each output once:

| | minimum | here |
|---|---|---|
| forward | 2n | 3n |
| ... with a residual | 3n | 4n |
| backward | 3n | 5n |
| ... with a residual, without a gradient of it | 4n | 7n |
| ... and with one | 5n | 7n |
| ... and a second gradient of y | 6n | 8n |

Without a residual the ReLU's side is found from x, which is read anyway, and y is not. The gradient of the residual costs
no more because the first pass leaves it, the masked sum of what comes, for the last to read in place of that and y. The
last kernel begins with what the first read last, which the L2 cache may still hold (50 MB on an H100; E_a's largest x is
34 MB of bfloat16 at four groups of 8): that much is counted above and not read. The workspace is at most 1 MB each for sums
and squares.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from dgnet_fast.kernels.batch_norm_parts import (
    affine,
    grad_before_relu,
    merged_statistics,
    merged_sums,
    part_at,
    parts_of,
    pivot_of,
    slice_statistics,
    values,
)
from dgnet_fast.kernels.batch_norm_whole import backward_groups, backward_whole, forward_whole
from dgnet_fast.kernels.slices import Slices, bounds, columns_of, offset, tile
from torch import Tensor

# Elements of a tile, 16 a thread, and at least so many a program: fewer programs leave less to merge.
TILE = 2048
SLICE_ELEMENTS = 8192
# In channels_last 64 channels are a line of 128 bytes in bfloat16.
COLUMNS = 64
# Two to three rounds of what an H100's 132 multiprocessors hold, 6 to 8 blocks of 128 threads each.
MOST_PROGRAMS = 2048
# Where a group has at most so many partial sums, each program of the last kernel merges those of its channels by itself: 64
# of 64 channels are 32 kB out of the L2 cache, as much as the program reads and writes besides, and a launch less.
MOST_PARTS = 64
# In channels_last a group of at most so many pixels is kept in registers (batch_norm_whole.py), 16 channels a program, which
# are a sector of bfloat16: E_a's last two stages at 8 pictures a group of 256x128. 512 threads hold 32 values each of a tensor.
WHOLE_PIXELS = 1024
WHOLE_COLUMNS = 16
WHOLE_WARPS = 16
# Elements of the workspace that a merging program reads at a time, and the most channels it serves.
MERGE = 4096
MERGE_COLUMNS = 64


@triton.jit
def forward_sums(
    x_ptr, parts_ptr, units, channels, pixels, slice_pixels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Leaves the `slice_statistics` of each slice and channel."""
    unit, index, first, last = bounds(pixels, slice_pixels, False)
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    pivot = pivot_of(x_ptr, unit // units, channel, units, channels, pixels, CHANNELS_LAST)
    x_ptr += unit * pixels * channels
    whole, squares = slice_statistics(
        x_ptr, pivot, first, last, channels, pixels, ROWS, COLUMNS, CHANNELS_LAST
    )
    to = parts_ptr + part_at(unit, index, channel, channels)
    tl.store(to, whole, channel < channels)
    tl.store(to + channels, squares, channel < channels)


@triton.jit
def forward_merge(
    x_ptr, parts_ptr, mean_ptr, var_ptr, elements, parts, slices, units, channels, pixels, slice_pixels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of a group's channels; a kernel of its own where there are many parts."""
    group = tl.program_id(1)
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mean, var = merged_statistics(
        parts_of(parts_ptr, group, parts, channels), channel, elements, parts, slices, channels, pixels,
        slice_pixels, ROWS, COLUMNS,
    )  # fmt: skip
    pivot = pivot_of(x_ptr, group, channel, units, channels, pixels, CHANNELS_LAST)
    tl.store(mean_ptr + group * channels + channel, pivot + mean, channel < channels)
    tl.store(var_ptr + group * channels + channel, var, channel < channels)


@triton.jit
def forward_apply(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, mean_ptr, var_ptr, parts_ptr, elements, parts, slices,
    units, channels, pixels, slice_pixels, eps, MERGE_ROWS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Writes a slice of y; merges the statistics and leaves them, unless `forward_merge` has (MERGE_ROWS 0)."""
    unit, index, first, last = bounds(pixels, slice_pixels, True)
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    group = unit // units
    code, inside = group * channels + channel, channel < channels
    if MERGE_ROWS:
        mean, var = merged_statistics(
            parts_of(parts_ptr, group, parts, channels), channel, elements, parts, slices, channels, pixels,
            slice_pixels, MERGE_ROWS, COLUMNS,
        )  # fmt: skip
        mean += pivot_of(x_ptr, group, channel, units, channels, pixels, CHANNELS_LAST)
        if (unit % units == 0) & (index == 0):
            tl.store(mean_ptr + code, mean, inside)
            tl.store(var_ptr + code, var, inside)
    else:
        mean = tl.load(mean_ptr + code, inside, other=0.0)
        var = tl.load(var_ptr + code, inside, other=0.0)
    factor = tl.load(weight_ptr + channel, inside, other=0.0) / tl.sqrt(var + eps)
    shift = tl.load(bias_ptr + channel, inside, other=0.0)
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        at = unit * pixels * channels + offset(pixel, channel, pixels, channels, CHANNELS_LAST)
        z = (values(x_ptr, at, mask) - mean) * factor + shift
        if residual_ptr is not None:
            z += values(residual_ptr, at, mask)
        if RELU:
            z = tl.where(z <= 0, 0.0, z)  # NaN passes
        tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def backward_sums(
    grad_y_ptr, grad_again_ptr, y_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, grad_residual_ptr,
    parts_ptr, units, channels, pixels, slice_pixels, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Leaves sums of the gradient before the ReLU, plain and times centred x, and writes grad_residual."""
    unit, index, first, last = bounds(pixels, slice_pixels, False)
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    code, inside = unit // units * channels + channel, channel < channels
    mean = tl.load(mean_ptr + code, inside, other=0.0)
    factor, shift = mean, mean
    if bias_ptr is not None:
        factor, shift = affine(weight_ptr, bias_ptr, var_ptr, code, channel, inside, eps)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        at = unit * pixels * channels + offset(pixel, channel, pixels, channels, CHANNELS_LAST)
        centred = values(x_ptr, at, mask) - mean
        grad = grad_before_relu(grad_y_ptr, grad_again_ptr, y_ptr, bias_ptr, centred, factor, shift, at, mask)
        if grad_residual_ptr is not None:
            tl.store(grad_residual_ptr + at, grad.to(grad_residual_ptr.dtype.element_ty), mask)
        sums += grad
        products += grad * centred
    to = parts_ptr + part_at(unit, index, channel, channels)
    tl.store(to, tl.sum(sums, 0)[None, :], channel < channels)
    tl.store(to + channels, tl.sum(products, 0)[None, :], channel < channels)


@triton.jit
def backward_merge(parts_ptr, sums_ptr, parts, groups, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums (2, groups, channels); a kernel of its own where there are many parts."""
    group = tl.program_id(1)
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    sums, products = merged_sums(
        parts_of(parts_ptr, group, parts, channels), channel, parts, channels, ROWS, COLUMNS
    )
    to = sums_ptr + group * channels + channel
    tl.store(to, sums, channel < channels)
    tl.store(to + groups * channels, products, channel < channels)


@triton.jit
def _sums_of(
    sums_ptr, group, channel, parts, groups, channels, MERGE_ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """A group's two sums, from what `backward_merge` left or, with MERGE_ROWS, from the parts."""
    if MERGE_ROWS:
        sums, products = merged_sums(
            parts_of(sums_ptr, group, parts, channels), channel, parts, channels, MERGE_ROWS, COLUMNS
        )
    else:
        at, inside = sums_ptr + group * channels + channel, channel < channels
        sums = tl.load(at, inside, other=0.0)
        products = tl.load(at + groups * channels, inside, other=0.0)
    return sums, products


@triton.jit
def backward_apply(
    grad_y_ptr, grad_again_ptr, y_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, sums_ptr, grad_x_ptr,
    grad_weight_ptr, grad_bias_ptr, elements, parts, groups, units, channels, pixels, slice_pixels, eps,
    MERGE_ROWS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Writes a slice of grad_x; the first slice's programs add up the groups' gradients of weight and bias."""
    unit, index, first, last = bounds(pixels, slice_pixels, True)
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    inside = channel < channels
    if (unit == 0) & (index == 0):
        grad_weight = tl.zeros([1, COLUMNS], tl.float32)
        grad_bias = tl.zeros([1, COLUMNS], tl.float32)
        for group in range(0, groups):
            sums, products = _sums_of(sums_ptr, group, channel, parts, groups, channels, MERGE_ROWS, COLUMNS)
            var = tl.load(var_ptr + group * channels + channel, inside, other=0.0)
            grad_weight += products / tl.sqrt(var + eps)
            grad_bias += sums
        tl.store(grad_weight_ptr + channel, grad_weight, inside)
        tl.store(grad_bias_ptr + channel, grad_bias, inside)

    group = unit // units
    code = group * channels + channel
    mean = tl.load(mean_ptr + code, inside, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.load(var_ptr + code, inside, other=0.0) + eps)
    # as the forward pass has it, to the bit: the ReLU's side is found from it
    scale, shift = affine(weight_ptr, bias_ptr, var_ptr, code, channel, inside, eps)
    sums, products = _sums_of(sums_ptr, group, channel, parts, groups, channels, MERGE_ROWS, COLUMNS)
    level = sums / elements
    slope = products / elements * rstd * rstd
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        at = unit * pixels * channels + offset(pixel, channel, pixels, channels, CHANNELS_LAST)
        centred = values(x_ptr, at, mask) - mean
        grad = grad_before_relu(grad_y_ptr, grad_again_ptr, y_ptr, bias_ptr, centred, scale, shift, at, mask)
        grad_x = (grad - level - centred * slope) * scale
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
        merged_here = self.parts <= MOST_PARTS
        # a quarter of a tile at a time: a whole one took 96 registers
        rows = max(1, TILE // columns // 4)
        self.merge_rows = min(triton.next_power_of_2(self.parts), rows) if merged_here else 0
        columns = min(MERGE_COLUMNS, widest, max(4, MERGE // triton.next_power_of_2(self.parts)))
        self.merge = {"ROWS": min(MERGE // columns, triton.next_power_of_2(self.parts)), "COLUMNS": columns}
        self.merge_grid = (triton.cdiv(channels, columns), groups)
        shape = groups * self.parts, 2, channels
        self.workspace = torch.empty(shape, dtype=torch.float32, device=x.device)
        columns = min(WHOLE_COLUMNS, widest)
        self.whole_grid = (triton.cdiv(channels, columns), groups)
        rows = triton.next_power_of_2(pixels)
        warps = max(1, min(WHOLE_WARPS, rows * columns // 256))
        self.whole = {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
        self.is_whole = channels_last and pixels <= WHOLE_PIXELS


def kernels_of(x: Tensor, groups: int) -> tuple[int, int]:
    """How many kernels `forward` and `backward` launch for such an x."""
    cut = _Launch(x, groups)
    several = 2 if cut.merge_rows else 3
    return (1, 2) if cut.is_whole else (several, several)


def reads_once(x: Tensor, groups: int) -> bool:
    """Whether they read every tensor once."""
    return _Launch(x, groups).is_whole


def forward(a: SimpleNamespace) -> None:
    """Fills y, mean and var."""
    cut = _Launch(a.x, a.groups)
    filled = (a.x, a.weight, a.bias, a.residual, a.y, a.mean, a.var)
    if cut.is_whole:
        _, channels, pixels, _ = cut.sizes
        forward_whole[cut.whole_grid](*filled, channels, pixels, a.eps, RELU=a.relu, **cut.whole)
        return
    forward_sums[cut.grid](a.x, cut.workspace, *cut.sizes, **cut.tile)
    merging = (cut.elements, cut.parts, cut.slices.count, *cut.sizes)
    if not cut.merge_rows:
        forward_merge[cut.merge_grid](
            a.x, cut.workspace, a.mean, a.var, *merging, CHANNELS_LAST=cut.tile["CHANNELS_LAST"], **cut.merge
        )
    forward_apply[cut.grid](
        *filled, cut.workspace, *merging, a.eps, MERGE_ROWS=cut.merge_rows, RELU=a.relu, **cut.tile
    )


def backward(a: SimpleNamespace) -> None:
    """Fills grad_x, grad_weight and grad_bias, and grad_residual unless it is empty."""
    cut = _Launch(a.x, a.groups)
    grad_residual = a.grad_residual if a.grad_residual.numel() else None
    sign = a.y if a.relu and a.bias is None else None
    bias = a.bias if a.relu else None
    statistics = (a.mean, a.var)
    passed = (a.grad_y, a.grad_again, sign, a.x, a.weight, bias)
    if cut.is_whole:
        _, channels, pixels, _ = cut.sizes
        sums = torch.empty((2, *a.mean.shape), dtype=torch.float32, device=a.x.device)
        backward_whole[cut.whole_grid](
            *passed,
            *statistics,
            grad_residual,
            a.grad_x,
            sums,
            a.groups,
            channels,
            pixels,
            a.eps,
            **cut.whole,
        )
        backward_groups[(triton.cdiv(channels, MERGE_COLUMNS),)](
            sums,
            a.var,
            a.grad_weight,
            a.grad_bias,
            a.groups,
            channels,
            a.eps,
            COLUMNS=MERGE_COLUMNS,
            num_warps=1,
        )
        return
    backward_sums[cut.grid](*passed, *statistics, grad_residual, cut.workspace, *cut.sizes, a.eps, **cut.tile)
    sums = cut.workspace
    if not cut.merge_rows:
        sums = torch.empty((2, *a.mean.shape), dtype=torch.float32, device=a.x.device)
        backward_merge[cut.merge_grid](cut.workspace, sums, cut.parts, a.groups, a.x.shape[1], **cut.merge)
    if grad_residual is not None:  # what the first kernel read of the gradients, summed and masked
        passed = (grad_residual, None, None, a.x, a.weight, None)
    backward_apply[cut.grid](
        *passed, *statistics, sums, a.grad_x, a.grad_weight, a.grad_bias, cut.elements,
        cut.parts, a.groups, *cut.sizes, a.eps, MERGE_ROWS=cut.merge_rows, **cut.tile,
    )  # fmt: skip
