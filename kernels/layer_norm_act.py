"""Triton body of `layer_norm_act`; the definition is in dgnet_fast/ops/layer_norm_act.py.

`forward` and `backward` take what the op prepared and allocated, by its names: tensors dense in NCHW or channels_last
order, gamma and beta float32 and contiguous. A sample has up to a million elements, so it is split: a first kernel
leaves each program's sums in a workspace, a second merges its sample's in a fixed order and writes the result.
A program serves a tile of pixels by channels along a slice of the pixels; in NCHW a tile is as long along the
pixels as it can be. No atomics: results are the same from run to run. Height and width are compile-time
constants with padding only (padding.py says why), or with phases: those of a picture in channels_last are its pixels in
another order, which sums do not see and results are read from and gradients written to (dgnet_fast/ops/phases.py).

Device memory traffic for n bytes of x, with n' bytes of padded y: forward 2n + n' where the minimum (each input
read once, each output written once) is n + n'; backward 3n + 2n', minimum 2n + n'. The second kernel goes
through the samples backwards, so that what the L2 cache still holds is not read again from memory: up to 50 MB
on an H100, where x has 50 MB (C 64, 128x64) or 100 MB (C 32, 256x128) in bfloat16 at batch 48. The workspaces
are below 1 % of that.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from dgnet_fast.kernels.padding import constants, copies, folded_of_sample, source
from dgnet_fast.kernels.slices import (
    Slices,
    activate,
    bounds,
    channel_sums,
    columns_of,
    offset,
    summing,
    tile,
)

# Elements of a tile, and at least so many a program: fewer programs leave less to merge.
TILE = 2048
SLICE_ELEMENTS = 8192
# As many programs a sample as give each multiprocessor of an H100 (132) work at batch 8; 1 M elements in
# slices of 8192 are 128 of them.
MOST_SLICES = 128
# A standard deviation of at most so many eps counts as 0 and has no gradient; as in the op's reference.
LEAST_STD = 1e-6
# Partial sums read at a time by a program that merges them.
MERGE = 256


@triton.jit
def _part(sample, index):
    """Number of this program's partial sums; a sample's are neighbours."""
    return (sample * tl.num_programs(0) + index) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def _added(bias_ptr, channel, channels):
    """The bias of channels (1, COLUMNS); 0 where there is none."""
    bias = tl.zeros_like(channel).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, channel < channels, other=0.0)
    return bias


@triton.jit
def _place_in_phases(row, column, WIDTH: tl.constexpr):
    """Number, among the pixels of a picture in phases, of the one in this row and column of the picture."""
    return (row // 2 * (WIDTH // 2) + column // 2) * 4 + row % 2 * 2 + column % 2


@triton.jit
def _from_phases(place, WIDTH: tl.constexpr):
    """Number, in the picture, of a pixel of its phases; `_place_in_phases` the other way."""
    quad = place // 4
    row = quad // (WIDTH // 2) * 2 + place % 4 // 2
    return row * WIDTH + quad % (WIDTH // 2) * 2 + place % 2


@triton.jit
def forward_sums(
    x_ptr, bias_ptr, parts_ptr, channels, pixels, slice_pixels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Leaves each program's element count, mean and sum of squares about it.

    Every lane of the tile keeps a running mean and sum of squares (Welford), so that x is read once and
    means far from zero cost no accuracy; masked lanes come last and change nothing.
    """
    sample, index, first, last = bounds(pixels, slice_pixels, False)
    x_ptr += sample * pixels * channels
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    bias = _added(bias_ptr, channel, channels)
    mean = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    count = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        at = offset(pixel, channel, pixels, channels, CHANNELS_LAST)
        x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32) + bias
        difference = tl.where(mask, x - mean, 0.0)
        mean += difference * (1.0 / ((start - first) // ROWS + 1).to(tl.float32))
        squares += difference * tl.where(mask, x - mean, 0.0)
        count += tl.where(mask, 1.0, 0.0)
    total = tl.sum(count)
    whole_mean = tl.sum(mean * count) / total
    difference = mean - whole_mean
    to = parts_ptr + _part(sample, index) * 3
    tl.store(to, total)
    tl.store(to + 1, whole_mean)
    tl.store(to + 2, tl.sum(squares + count * difference * difference))


@triton.jit
def _merged_statistics(parts_ptr, parts, elements, eps, MERGE: tl.constexpr):
    """Mean and 1 / (unbiased standard deviation + eps) of a sample from its `parts` partial sums."""
    sums = tl.zeros([MERGE], tl.float32)
    for start in range(0, parts, MERGE):
        part = start + tl.arange(0, MERGE)
        count = tl.load(parts_ptr + part * 3, part < parts, other=0.0)
        sums += count * tl.load(parts_ptr + part * 3 + 1, part < parts, other=0.0)
    mean = tl.sum(sums) / elements
    sums = tl.zeros([MERGE], tl.float32)
    for start in range(0, parts, MERGE):
        part = start + tl.arange(0, MERGE)
        count = tl.load(parts_ptr + part * 3, part < parts, other=0.0)
        difference = tl.load(parts_ptr + part * 3 + 1, part < parts, other=0.0) - mean
        sums += count * difference * difference
        sums += tl.load(parts_ptr + part * 3 + 2, part < parts, other=0.0)
    return mean, 1.0 / (tl.sqrt(tl.sum(sums) / (elements - 1)) + eps)


@triton.jit
def forward_apply(
    x_ptr, gamma_ptr, beta_ptr, bias_ptr, y_ptr, mean_ptr, rdenom_ptr, parts_ptr, parts, channels, pixels,
    padded_pixels, slice_pixels, slope, eps, MERGE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    PADDING: tl.constexpr, PHASES: tl.constexpr,
):  # fmt: skip
    """Merges a sample's statistics and writes a slice of the padded result."""
    sample, index, first, last = bounds(padded_pixels, slice_pixels, True)
    mean, rdenom = _merged_statistics(parts_ptr + sample * parts * 3, parts, pixels * channels, eps, MERGE)
    if (index == 0) & (tl.program_id(1) == 0):
        tl.store(mean_ptr + sample, mean)
        tl.store(rdenom_ptr + sample, rdenom)
    x_ptr += sample * pixels * channels
    y_ptr += sample * padded_pixels * channels
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    factor = tl.load(gamma_ptr + channel, channel < channels, other=0.0) * rdenom
    shift = tl.load(beta_ptr + channel, channel < channels, other=0.0)
    mean = mean - _added(bias_ptr, channel, channels)  # of x without its bias
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        shown = pixel
        if PADDING > 0 or PHASES:
            row, column = source(pixel, HEIGHT, WIDTH, PADDING)
            shown = _place_in_phases(row, column, WIDTH) if PHASES else row * WIDTH + column
        at = offset(shown, channel, pixels, channels, CHANNELS_LAST)
        z = (tl.load(x_ptr + at, mask, other=0.0).to(tl.float32) - mean) * factor + shift
        to = offset(pixel, channel, padded_pixels, channels, CHANNELS_LAST)
        tl.store(y_ptr + to, activate(z, z, slope).to(y_ptr.dtype.element_ty), mask)


@triton.jit
def _gradients(
    grad_y_ptr, x_ptr, start, last, mean, factor, shift, channels, pixels, padded_pixels, slope,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, PADDING: tl.constexpr, COPIES: tl.constexpr, PHASES: tl.constexpr,
):  # fmt: skip
    """Returns offsets and mask of a tile, the centred input, and the gradient before the activation (0 outside)."""
    pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
    at = offset(pixel, channel, pixels, channels, CHANNELS_LAST)
    if PHASES:
        pixel = _from_phases(pixel, WIDTH)
    grad_y = folded_of_sample(
        grad_y_ptr, pixel, channel, mask, channels, padded_pixels, CHANNELS_LAST, HEIGHT, WIDTH, PADDING, COPIES
    )  # fmt: skip
    centred = tl.where(mask, tl.load(x_ptr + at, mask, other=0.0).to(tl.float32) - mean, 0.0)
    return at, mask, centred, activate(centred * factor + shift, grad_y, slope)


@triton.jit
def backward_sums(
    grad_y_ptr, x_ptr, gamma_ptr, beta_ptr, bias_ptr, mean_ptr, rdenom_ptr, parts_ptr, sums_ptr, channels, pixels,
    padded_pixels, slice_pixels, slope, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr,
    COPIES: tl.constexpr, PHASES: tl.constexpr,
):  # fmt: skip
    """Leaves sums of the gradient before the activation, plain and times the centred input.

    In `sums` (2, channels, batch x slices) for beta and gamma; weighted by gamma in `parts` (.., 2) for x.
    """
    sample, index, first, last = bounds(pixels, slice_pixels, False)
    mean = tl.load(mean_ptr + sample)
    rdenom = tl.load(rdenom_ptr + sample)
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    gamma = tl.load(gamma_ptr + channel, channel < channels, other=0.0)
    shift = tl.load(beta_ptr + channel, channel < channels, other=0.0)
    mean = mean - _added(bias_ptr, channel, channels)
    grad_y_ptr += sample * padded_pixels * channels
    x_ptr += sample * pixels * channels
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    sums_centred = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        _, _, centred, grad_z = _gradients(
            grad_y_ptr, x_ptr, start, last, mean, gamma * rdenom, shift, channels, pixels, padded_pixels,
            slope, ROWS, COLUMNS, CHANNELS_LAST, HEIGHT, WIDTH, PADDING, COPIES, PHASES,
        )  # fmt: skip
        sums += grad_z
        sums_centred += grad_z * centred
    total = tl.sum(sums, 0)[None, :]
    total_centred = tl.sum(sums_centred, 0)[None, :]
    slices = tl.num_programs(0) * tl.num_programs(2)
    to = sums_ptr + channel.to(tl.int64) * slices + sample * tl.num_programs(0) + index
    tl.store(to, total, channel < channels)
    to = sums_ptr + (channels + channel).to(tl.int64) * slices + sample * tl.num_programs(0) + index
    tl.store(to, total_centred * rdenom, channel < channels)
    to = parts_ptr + _part(sample, index) * 2
    tl.store(to, tl.sum(total * gamma))
    tl.store(to + 1, tl.sum(total_centred * gamma))


@triton.jit
def _merged_sum(at_ptr, count, STRIDE: tl.constexpr, MERGE: tl.constexpr):
    sums = tl.zeros([MERGE], tl.float32)
    for start in range(0, count, MERGE):
        part = start + tl.arange(0, MERGE)
        sums += tl.load(at_ptr + part * STRIDE, part < count, other=0.0)
    return tl.sum(sums)


@triton.jit
def backward_apply(
    grad_y_ptr, x_ptr, gamma_ptr, beta_ptr, bias_ptr, mean_ptr, rdenom_ptr, grad_x_ptr, grad_gamma_ptr, grad_beta_ptr,
    parts_ptr, sums_ptr, bias_parts_ptr, channels, pixels, padded_pixels, slice_pixels, slope, eps, least_std,
    MERGE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr, COPIES: tl.constexpr,
    PHASES: tl.constexpr,
):  # fmt: skip
    """Merges a sample's sums and writes a slice of grad_x, and with `bias_parts` (samples x slices, channels) its sums; the
    programs share the channels of gamma and beta.
    """
    slices = tl.num_programs(0)
    program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * slices + tl.program_id(0)
    parts = slices * tl.num_programs(2)
    for c in range(program, channels, parts * tl.num_programs(1)):
        from_ptr = sums_ptr + c * parts
        tl.store(grad_beta_ptr + c, _merged_sum(from_ptr, parts, 1, MERGE))
        from_ptr = sums_ptr + (c + channels) * parts
        tl.store(grad_gamma_ptr + c, _merged_sum(from_ptr, parts, 1, MERGE))

    sample, index, first, last = bounds(pixels, slice_pixels, True)
    mean = tl.load(mean_ptr + sample)
    rdenom = tl.load(rdenom_ptr + sample)
    parts = slices * tl.num_programs(1)
    parts_ptr += sample * parts * 2
    elements = pixels * channels * 1.0
    total = _merged_sum(parts_ptr, parts, 2, MERGE)
    total_centred = _merged_sum(parts_ptr + 1, parts, 2, MERGE)
    std = 1.0 / rdenom - eps
    share = tl.where(std <= least_std, 0.0, total_centred * rdenom * rdenom / (std * (elements - 1)))
    _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
    gamma = tl.load(gamma_ptr + channel, channel < channels, other=0.0)
    shift = tl.load(beta_ptr + channel, channel < channels, other=0.0)
    mean = mean - _added(bias_ptr, channel, channels)
    grad_y_ptr += sample * padded_pixels * channels
    x_ptr += sample * pixels * channels
    grad_x_ptr += sample * pixels * channels
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        at, mask, centred, grad_z = _gradients(
            grad_y_ptr, x_ptr, start, last, mean, gamma * rdenom, shift, channels, pixels, padded_pixels,
            slope, ROWS, COLUMNS, CHANNELS_LAST, HEIGHT, WIDTH, PADDING, COPIES, PHASES,
        )  # fmt: skip
        grad_x = (grad_z * gamma - total / elements) * rdenom - centred * share
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask)
        sums += tl.where(mask, grad_x, 0.0)
    if bias_parts_ptr is not None:
        to = bias_parts_ptr + (sample * slices + index) * channels + channel
        tl.store(to, tl.sum(sums, 0)[None, :], channel < channels)


def _slices(batch: int, channels: int, pixels: int, channels_last: bool, folds: bool = False) -> Slices:
    elements = (
        TILE // 2 if folds else TILE
    )  # folding a padded gradient takes registers: 181 a thread with 2048
    # 32 channels are 64 bytes of bf16, two sectors
    columns = columns_of(channels, pixels, channels_last, widest=32, tile=elements)
    blocks = triton.cdiv(channels, columns)
    return Slices(
        batch, channels, pixels, columns=columns,
        tile=elements, slice_elements=SLICE_ELEMENTS, most=max(1, MOST_SLICES // blocks),
    )  # fmt: skip


def _sizes(a: SimpleNamespace) -> tuple[int, int, int, int]:
    """Batch, channels, height and width of the picture; with phases that which they are."""
    batch, channels, height, width = a.x.shape
    return (batch, channels // 4, 2 * height, 2 * width) if a.phases else (batch, channels, height, width)


def forward(a: SimpleNamespace) -> None:
    """Fills y, mean and rdenom = 1 / (std + eps); negative_slope 1 means no activation."""
    batch, channels, height, width = _sizes(a)
    channels_last = not a.x.is_contiguous()
    pixels, padded_pixels = height * width, (height + 2 * a.padding) * (width + 2 * a.padding)
    read = _slices(batch, channels, pixels, channels_last)
    write = _slices(batch, channels, padded_pixels, channels_last)
    parts = torch.empty((batch, read.count * read.grid[1], 3), dtype=torch.float32, device=a.x.device)
    forward_sums[read.grid](
        a.x, a.bias, parts, channels, pixels, read.pixels, CHANNELS_LAST=channels_last, **read.tile
    )
    forward_apply[write.grid](
        a.x, a.gamma, a.beta, a.bias, a.y, a.mean, a.rdenom, parts, parts.shape[1], channels, pixels, padded_pixels,
        write.pixels, a.negative_slope, a.eps, MERGE=MERGE, CHANNELS_LAST=channels_last,
        PHASES=a.phases, **constants(height, width, a.padding, a.padding > 0 or a.phases), **write.tile,
    )  # fmt: skip


def backward(a: SimpleNamespace) -> None:
    """Fills grad_x, grad_gamma and grad_beta, and grad_bias unless it is empty."""
    batch, channels, height, width = _sizes(a)
    channels_last = not a.x.is_contiguous()
    pixels, padded_pixels = height * width, (height + 2 * a.padding) * (width + 2 * a.padding)
    slices = _slices(batch, channels, pixels, channels_last, folds=a.padding > 0)
    parts = torch.empty((batch, slices.count * slices.grid[1], 2), dtype=torch.float32, device=a.x.device)
    sums = torch.empty((2, channels, batch, slices.count), dtype=torch.float32, device=a.x.device)
    bias_parts = None
    if a.grad_bias.numel():
        bias_parts = torch.empty((batch * slices.count, channels), dtype=torch.float32, device=a.x.device)
    inputs = (a.grad_y, a.x, a.gamma, a.beta, a.bias, a.mean, a.rdenom)
    sizes = (channels, pixels, padded_pixels, slices.pixels, a.negative_slope)
    options = {
        "CHANNELS_LAST": channels_last,
        "COPIES": copies(height, width, a.padding),
        "PHASES": a.phases,
        **constants(height, width, a.padding, a.padding > 0 or a.phases),
        **slices.tile,
    }
    backward_sums[slices.grid](*inputs, parts, sums, *sizes, **options)
    backward_apply[slices.grid](
        *inputs, a.grad_x, a.grad_gamma, a.grad_beta, parts, sums, bias_parts, *sizes, a.eps, LEAST_STD * a.eps,
        MERGE=MERGE, **options,
    )  # fmt: skip
    if bias_parts is not None:
        grid, tiles = summing(bias_parts)
        channel_sums[grid](bias_parts, a.grad_bias, *bias_parts.shape, **tiles)
