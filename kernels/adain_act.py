"""Triton body of `adain_act`; the definition is in dgnet_fast/ops/adain_act.py.

`forward` and `backward` take what the op prepared and allocated, by its names: tensors dense in NCHW or channels_last
order, scale and shift float32 and contiguous, a residual with its own strides. In NCHW one program serves one (sample,
channel) plane. In channels_last a program serves a block of channels of one slice of the pixels: a
first kernel leaves each slice's sums in a workspace, a second merges them in a fixed order and writes the
result. No atomics: results are the same from run to run. Batch, channels and slope are run-time arguments;
height and width are too, unless there is padding or a residual with a row pitch of its own (padding.py says
why).

Device memory traffic for n bytes of x, with n' bytes of padded y; the minimum reads each input and writes each
output once. The traffic between passes that the L2 cache keeps (50 MB on an H100; x at batch 48 of the
decoder is 25 MB of bfloat16) is counted as if it missed:

| | minimum | NCHW, planes to 8192 pixels | larger planes | channels_last |
|---|---|---|---|---|
| forward | n + n' | the minimum | 3n + n' | 2n + n' |
| ... with a residual | 2n + n' | the minimum | 4n + n' | 3n + n' |
| backward | 2n + n' | the minimum | 3n + 2n' | 3n + 2n' |
| ... grad_residual, with padding | 3n + n' | the minimum | 4n + 2n' | 4n + 2n' |
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from dgnet_fast.kernels.padding import constants, copies, folded, source
from dgnet_fast.kernels.slices import Slices, activate, bounds

# A plane up to this many pixels is held in registers (32 a thread at 8 warps) and read once; a larger one is
# read three times, in pieces of PIECE: at 8192 that version takes 164 registers a thread.
PLANE_BLOCK = 8192
PIECE = 4096
# With padding, pixels written at a time by one warp; small, because a last piece is rarely full.
MAPPED_PIECE = 128


@triton.jit
def _affine(scale_ptr, shift_ptr, code, mask, rstd, AFFINE: tl.constexpr):
    """Factor on the centred input, and shift."""
    if AFFINE:
        factor = tl.load(scale_ptr + code, mask, other=0.0) * rstd
        shift = tl.load(shift_ptr + code, mask, other=0.0)
    else:
        factor = rstd
        shift = rstd * 0.0
    return factor, shift


@triton.jit
def _grad_z(grad_y, x_ptr, at, mask, mean, factor, shift, slope):
    """The centred input and the gradient before the activation, both zero outside the mask."""
    centred = tl.where(mask, tl.load(x_ptr + at, mask, other=0.0).to(tl.float32) - mean, 0.0)
    return centred, activate(centred * factor + shift, grad_y, slope)


@triton.jit
def forward_planes(
    x_ptr, scale_ptr, shift_ptr, residual_ptr, y_ptr, mean_ptr, rstd_ptr, channels, pixels,
    residual_sample, residual_channel, residual_row, slope, eps, AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    x_ptr += plane * pixels
    lanes = tl.arange(0, BLOCK)
    if WHOLE:
        mask = lanes < pixels
        x = tl.load(x_ptr + lanes, mask, other=0.0).to(tl.float32)
        mean = tl.sum(x) / pixels
        centred = tl.where(mask, x - mean, 0.0)
        squares = tl.sum(centred * centred)
    else:
        sums = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            sums += tl.load(x_ptr + at, at < pixels, other=0.0).to(tl.float32)
        mean = tl.sum(sums) / pixels
        sums = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            x = tl.load(x_ptr + at, at < pixels, other=0.0).to(tl.float32)
            centred = tl.where(at < pixels, x - mean, 0.0)
            sums += centred * centred
        squares = tl.sum(sums)
    rstd = 1.0 / tl.sqrt(squares / pixels + eps)
    tl.store(mean_ptr + plane, mean)
    tl.store(rstd_ptr + plane, rstd)
    factor, shift = _affine(scale_ptr, shift_ptr, plane, True, rstd, AFFINE)
    if HEIGHT > 0:
        # Written in the order of y, read again (the plane is in the L1 cache) at the pixels that y shows.
        PADDED: tl.constexpr = (HEIGHT + 2 * PADDING) * (WIDTH + 2 * PADDING)
        y_ptr += plane * PADDED
        if RESIDUAL:
            residual_ptr += plane // channels * residual_sample + plane % channels * residual_channel
        for start in range(0, PADDED, PIECE):
            pixel = start + tl.arange(0, PIECE)
            row, column = source(pixel, HEIGHT, WIDTH, PADDING)
            shown = tl.load(x_ptr + row * WIDTH + column, pixel < PADDED, other=0.0).to(tl.float32)
            z = (shown - mean) * factor + shift
            y = activate(z, z, slope)
            if RESIDUAL:
                at = row.to(tl.int64) * residual_row + column
                y += tl.load(residual_ptr + at, pixel < PADDED, other=0.0).to(tl.float32)
            tl.store(y_ptr + pixel, y.to(y_ptr.dtype.element_ty), pixel < PADDED)
    elif WHOLE:
        z = centred * factor + shift
        y = activate(z, z, slope)
        if RESIDUAL:
            y += tl.load(residual_ptr + plane * pixels + lanes, mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + plane * pixels + lanes, y.to(y_ptr.dtype.element_ty), mask)
    else:
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            z = (tl.load(x_ptr + at, at < pixels, other=0.0).to(tl.float32) - mean) * factor + shift
            y = activate(z, z, slope)
            if RESIDUAL:
                y += tl.load(residual_ptr + plane * pixels + at, at < pixels, other=0.0).to(tl.float32)
            tl.store(y_ptr + plane * pixels + at, y.to(y_ptr.dtype.element_ty), at < pixels)


@triton.jit
def backward_planes(
    grad_y_ptr, x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, grad_x_ptr, grad_scale_ptr, grad_shift_ptr,
    grad_residual_ptr, pixels, padded_pixels, slope, AFFINE: tl.constexpr, RESIDUAL: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    PADDING: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    grad_y_ptr += plane * padded_pixels
    x_ptr += plane * pixels
    lanes = tl.arange(0, BLOCK)
    mean = tl.load(mean_ptr + plane)
    rstd = tl.load(rstd_ptr + plane)
    factor, shift = _affine(scale_ptr, shift_ptr, plane, True, rstd, AFFINE)
    if WHOLE:
        mask = lanes < pixels
        grad_y = folded(grad_y_ptr, lanes, 0, mask, 1, 1, HEIGHT, WIDTH, PADDING, COPIES)
        centred, grad_z = _grad_z(grad_y, x_ptr, lanes, mask, mean, factor, shift, slope)
        if RESIDUAL:
            to = grad_residual_ptr + plane * pixels + lanes
            tl.store(to, grad_y.to(grad_residual_ptr.dtype.element_ty), mask)
        total = tl.sum(grad_z)
        total_centred = tl.sum(grad_z * centred)
    else:
        sums = tl.zeros([BLOCK], tl.float32)
        sums_centred = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            grad_y = folded(grad_y_ptr, at, 0, at < pixels, 1, 1, HEIGHT, WIDTH, PADDING, COPIES)
            centred, grad_z = _grad_z(grad_y, x_ptr, at, at < pixels, mean, factor, shift, slope)
            sums += grad_z
            sums_centred += grad_z * centred
        total = tl.sum(sums)
        total_centred = tl.sum(sums_centred)
    tl.store(grad_scale_ptr + plane, total_centred * rstd)
    tl.store(grad_shift_ptr + plane, total)
    mean_grad = total / pixels
    slope_grad = total_centred / pixels * rstd * rstd
    if WHOLE:
        grad_x = (grad_z - mean_grad - centred * slope_grad) * factor
        tl.store(grad_x_ptr + plane * pixels + lanes, grad_x.to(grad_x_ptr.dtype.element_ty), mask)
    else:
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            grad_y = folded(grad_y_ptr, at, 0, at < pixels, 1, 1, HEIGHT, WIDTH, PADDING, COPIES)
            centred, grad_z = _grad_z(grad_y, x_ptr, at, at < pixels, mean, factor, shift, slope)
            grad_x = (grad_z - mean_grad - centred * slope_grad) * factor
            tl.store(grad_x_ptr + plane * pixels + at, grad_x.to(grad_x_ptr.dtype.element_ty), at < pixels)
            if RESIDUAL:
                to = grad_residual_ptr + plane * pixels + at
                tl.store(to, grad_y.to(grad_residual_ptr.dtype.element_ty), at < pixels)


@triton.jit
def _load_centred(x_ptr, start, last, mean, channel, channels, ROWS: tl.constexpr):
    """x - mean of a tile of dense pixels, 0 outside the slice."""
    pixel = start + tl.arange(0, ROWS)[:, None]
    mask = (pixel < last) & (channel < channels)[None, :]
    x = tl.load(x_ptr + pixel.to(tl.int64) * channels + channel[None, :], mask, other=0.0)
    return tl.where(mask, x.to(tl.float32) - mean, 0.0)


@triton.jit
def forward_slices(
    x_ptr, workspace_ptr, channels, pixels, slice_pixels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Leaves each slice's mean and sum of squares about it."""
    sample, index, first, last = bounds(pixels, slice_pixels, False)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x_ptr += sample * pixels * channels
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        sums += _load_centred(x_ptr, start, last, 0.0, channel, channels, ROWS)
    mean = tl.sum(sums, 0) / (last - first)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        centred = _load_centred(x_ptr, start, last, mean[None, :], channel, channels, ROWS)
        sums += centred * centred
    inside = channel < channels
    workspace_ptr += (sample * tl.num_programs(0) + index) * 2 * channels
    tl.store(workspace_ptr + channel, mean, inside)
    tl.store(workspace_ptr + channels + channel, tl.sum(sums, 0), inside)


@triton.jit
def _merge_at(sample, channel, channels, count, SLICES: tl.constexpr):
    """Workspace offsets (SLICES, COLUMNS) of all slices of this sample, and their mask."""
    index = tl.arange(0, SLICES)
    at = (sample * count + index[:, None]) * 2 * channels + channel[None, :]
    return at, (index < count)[:, None] & (channel < channels)[None, :]


@triton.jit
def forward_apply(
    x_ptr, scale_ptr, shift_ptr, residual_ptr, y_ptr, mean_ptr, rstd_ptr, workspace_ptr, channels, pixels,
    slice_pixels, count, padded_pixels, padded_slice_pixels, residual_sample, residual_row, slope, eps,
    AFFINE: tl.constexpr, RESIDUAL: tl.constexpr, SLICES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """Merges the `count` slices' statistics and writes a slice of the padded result."""
    sample, index, first, last = bounds(padded_pixels, padded_slice_pixels, True)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    code = sample * channels + channel
    inside = channel < channels
    slots, filled = _merge_at(sample, channel, channels, count, SLICES)
    start_of_slice = tl.arange(0, SLICES) * slice_pixels
    size = tl.maximum(tl.minimum(pixels - start_of_slice, slice_pixels), 0).to(tl.float32)[:, None]
    means = tl.load(workspace_ptr + slots, filled, other=0.0)
    mean = tl.sum(means * size, 0) / pixels
    difference = tl.where(filled, means - mean[None, :], 0.0)
    squares = tl.load(workspace_ptr + slots + channels, filled, other=0.0) + size * difference * difference
    rstd = 1.0 / tl.sqrt(tl.sum(squares, 0) / pixels + eps)
    if index == 0:
        tl.store(mean_ptr + code, mean, inside)
        tl.store(rstd_ptr + code, rstd, inside)
    factor, shift = _affine(scale_ptr, shift_ptr, code, inside, rstd, AFFINE)
    x_ptr += sample * pixels * channels
    y_ptr += sample * padded_pixels * channels
    if RESIDUAL:
        residual_ptr += sample * residual_sample
    for start in range(first, last, ROWS):
        pixel = start + tl.arange(0, ROWS)[:, None]
        mask = (pixel < last) & inside[None, :]
        to = pixel.to(tl.int64) * channels + channel[None, :]
        if HEIGHT > 0:
            row, column = source(pixel, HEIGHT, WIDTH, PADDING)
            at = (row * WIDTH + column).to(tl.int64) * channels + channel[None, :]
            residual_at = row.to(tl.int64) * residual_row + column * channels + channel[None, :]
        else:
            at = to
            residual_at = to
        z = (tl.load(x_ptr + at, mask, other=0.0).to(tl.float32) - mean[None, :]) * factor[None, :]
        z += shift[None, :]
        y = activate(z, z, slope)
        if RESIDUAL:
            y += tl.load(residual_ptr + residual_at, mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + to, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def backward_slices(
    grad_y_ptr, x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, workspace_ptr, channels, pixels,
    padded_pixels, slice_pixels, slope, AFFINE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    sample, index, first, last = bounds(pixels, slice_pixels, False)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    code = sample * channels + channel
    inside = channel < channels
    mean = tl.load(mean_ptr + code, inside, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + code, inside, other=0.0)
    factor, shift = _affine(scale_ptr, shift_ptr, code, inside, rstd, AFFINE)
    factor, shift = factor[None, :], shift[None, :]
    grad_y_ptr += sample * padded_pixels * channels
    x_ptr += sample * pixels * channels
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    sums_centred = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        pixel = start + tl.arange(0, ROWS)[:, None]
        mask = (pixel < last) & inside[None, :]
        at = pixel.to(tl.int64) * channels + channel[None, :]
        grad_y = folded(
            grad_y_ptr, pixel, channel[None, :], mask, 1, channels, HEIGHT, WIDTH, PADDING, COPIES
        )
        centred, grad_z = _grad_z(grad_y, x_ptr, at, mask, mean, factor, shift, slope)
        sums += grad_z
        sums_centred += grad_z * centred
    workspace_ptr += (sample * tl.num_programs(0) + index) * 2 * channels
    tl.store(workspace_ptr + channel, tl.sum(sums, 0), inside)
    tl.store(workspace_ptr + channels + channel, tl.sum(sums_centred, 0), inside)


@triton.jit
def backward_apply(
    grad_y_ptr, x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, grad_x_ptr, grad_scale_ptr, grad_shift_ptr,
    grad_residual_ptr, workspace_ptr, channels, pixels, padded_pixels, slice_pixels, slope,
    AFFINE: tl.constexpr, RESIDUAL: tl.constexpr, SLICES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr,
    COPIES: tl.constexpr,
):  # fmt: skip
    sample, index, first, last = bounds(pixels, slice_pixels, True)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    code = sample * channels + channel
    inside = channel < channels
    slots, filled = _merge_at(sample, channel, channels, tl.num_programs(0), SLICES)
    total = tl.sum(tl.load(workspace_ptr + slots, filled, other=0.0), 0)
    total_centred = tl.sum(tl.load(workspace_ptr + slots + channels, filled, other=0.0), 0)
    mean = tl.load(mean_ptr + code, inside, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + code, inside, other=0.0)
    if index == 0:
        tl.store(grad_scale_ptr + code, total_centred * rstd, inside)
        tl.store(grad_shift_ptr + code, total, inside)
    factor, shift = _affine(scale_ptr, shift_ptr, code, inside, rstd, AFFINE)
    factor, shift = factor[None, :], shift[None, :]
    mean_grad = (total / pixels)[None, :]
    slope_grad = (total_centred / pixels * rstd * rstd)[None, :]
    grad_y_ptr += sample * padded_pixels * channels
    base = sample * pixels * channels
    for start in range(first, last, ROWS):
        pixel = start + tl.arange(0, ROWS)[:, None]
        mask = (pixel < last) & inside[None, :]
        at = base + pixel.to(tl.int64) * channels + channel[None, :]
        grad_y = folded(
            grad_y_ptr, pixel, channel[None, :], mask, 1, channels, HEIGHT, WIDTH, PADDING, COPIES
        )
        centred, grad_z = _grad_z(grad_y, x_ptr, at, mask, mean, factor, shift, slope)
        grad_x = (grad_z - mean_grad - centred * slope_grad) * factor
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask)
        if RESIDUAL:
            tl.store(grad_residual_ptr + at, grad_y.to(grad_residual_ptr.dtype.element_ty), mask)


def _plane_options(pixels: int, folds: bool = False) -> dict:
    whole = pixels <= PLANE_BLOCK
    block = triton.next_power_of_2(pixels) if whole else PIECE // 2 if folds else PIECE
    return {"WHOLE": whole, "BLOCK": block, "num_warps": 8 if block > 2048 else 4}


def _slices(batch: int, channels: int, pixels: int, folds: bool = False) -> Slices:
    # 32 channels are 64 bytes of bf16, two sectors; wider tiles would leave too few programs at batch 8.
    # Folding a padded gradient takes registers: 137 a thread with 2048 elements.
    columns = min(32, triton.next_power_of_2(channels))
    return Slices(batch, channels, pixels, columns=columns, tile=1024 if folds else 2048)


def forward(a: SimpleNamespace) -> None:
    """Fills y, mean and rstd; negative_slope 1 means no activation."""
    batch, channels, height, width = a.x.shape
    pixels, padded_pixels = height * width, (height + 2 * a.padding) * (width + 2 * a.padding)
    own_strides = a.residual is not None and a.residual.stride() != a.x.stride()
    options = {
        "AFFINE": a.scale is not None,
        "RESIDUAL": a.residual is not None,
        **constants(height, width, a.padding, a.padding > 0 or own_strides),
    }
    tensors = (a.x, a.scale, a.shift, a.residual, a.y, a.mean, a.rstd)
    strides = (0, 0, 0, 0) if a.residual is None else a.residual.stride()
    if a.x.is_contiguous():
        options |= _plane_options(pixels)
        forward_planes[(batch * channels,)](
            *tensors, channels, pixels, *strides[:3], a.negative_slope, a.eps,
            PIECE=MAPPED_PIECE * options["num_warps"], **options,
        )  # fmt: skip
        return
    read, write = _slices(batch, channels, pixels), _slices(batch, channels, padded_pixels)
    workspace = torch.empty((batch, read.count, 2, channels), dtype=torch.float32, device=a.x.device)
    sizes = (channels, pixels, read.pixels)
    forward_slices[read.grid](a.x, workspace, *sizes, **read.tile)
    forward_apply[write.grid](
        *tensors, workspace, *sizes, read.count, padded_pixels, write.pixels, strides[0], strides[2],
        a.negative_slope, a.eps, SLICES=triton.next_power_of_2(read.count), **write.tile, **options,
    )  # fmt: skip


def backward(a: SimpleNamespace) -> None:
    """Fills grad_x, grad_scale and grad_shift, and grad_residual unless it is empty.

    grad_scale and grad_shift are filled without scale and shift too.
    """
    batch, channels, height, width = a.x.shape
    pixels, padded_pixels = height * width, (height + 2 * a.padding) * (width + 2 * a.padding)
    folds = a.grad_residual.numel() > 0
    inputs = (a.grad_y, a.x, a.scale, a.shift, a.mean, a.rstd)
    outputs = (a.grad_x, a.grad_scale, a.grad_shift, a.grad_residual)
    maps = {**constants(height, width, a.padding), "COPIES": copies(height, width, a.padding)}
    flags = {"AFFINE": a.scale is not None, **maps}
    if a.x.is_contiguous():
        backward_planes[(batch * channels,)](
            *inputs, *outputs, pixels, padded_pixels, a.negative_slope,
            RESIDUAL=folds, **flags, **_plane_options(pixels, a.padding > 0),
        )  # fmt: skip
        return
    slices = _slices(batch, channels, pixels, a.padding > 0)
    workspace = torch.empty((batch, slices.count, 2, channels), dtype=torch.float32, device=a.x.device)
    sizes = (channels, pixels, padded_pixels, slices.pixels, a.negative_slope)
    backward_slices[slices.grid](*inputs, workspace, *sizes, **flags, **slices.tile)
    backward_apply[slices.grid](
        *inputs, *outputs, workspace, *sizes, RESIDUAL=folds,
        SLICES=triton.next_power_of_2(slices.count), **flags, **slices.tile,
    )  # fmt: skip
