"""Triton body of `adain_act`; the definition is in dgnet_fast/ops/adain_act.py.

`forward` and `backward` take what the op's module prepared: tensors dense in NCHW or channels_last order,
scale and shift float32 and contiguous. In NCHW one program serves one (sample, channel) plane. In
channels_last a program serves a block of channels of one slice of the pixels: a first kernel leaves each
slice's sums in a workspace, a second merges them in a fixed order and writes the result. Sizes are run-time
arguments, so a new batch size or resolution of the same kind compiles nothing new. No atomics: results are
the same from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# A plane up to this many pixels is held in registers (32 a thread at 8 warps) and read once; a larger one is
# read three times, in pieces of PIECE: at 8192 that version takes 164 registers a thread.
PLANE_BLOCK = 8192
PIECE = 4096
# channels_last: elements of a tile, and the pixels of a slice before slices are made longer.
TILE = 2048
SLICE_PIXELS = 256
MAX_SLICES = 32


@triton.jit
def _activate(z, value, slope):
    return tl.where(z > 0, value, value * slope)


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
def forward_planes(
    x_ptr, scale_ptr, shift_ptr, residual_ptr, y_ptr, mean_ptr, rstd_ptr, pixels, slope, eps,
    AFFINE: tl.constexpr, RESIDUAL: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    start_of_plane = plane * pixels
    lanes = tl.arange(0, BLOCK)
    if WHOLE:
        mask = lanes < pixels
        x = tl.load(x_ptr + start_of_plane + lanes, mask, other=0.0).to(tl.float32)
        mean = tl.sum(x) / pixels
        centred = tl.where(mask, x - mean, 0.0)
        squares = tl.sum(centred * centred)
    else:
        sums = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            sums += tl.load(x_ptr + start_of_plane + at, at < pixels, other=0.0).to(tl.float32)
        mean = tl.sum(sums) / pixels
        sums = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            x = tl.load(x_ptr + start_of_plane + at, at < pixels, other=0.0).to(tl.float32)
            centred = tl.where(at < pixels, x - mean, 0.0)
            sums += centred * centred
        squares = tl.sum(sums)
    rstd = 1.0 / tl.sqrt(squares / pixels + eps)
    tl.store(mean_ptr + plane, mean)
    tl.store(rstd_ptr + plane, rstd)
    factor, shift = _affine(scale_ptr, shift_ptr, plane, True, rstd, AFFINE)
    if WHOLE:
        z = centred * factor + shift
        y = _activate(z, z, slope)
        if RESIDUAL:
            y += tl.load(residual_ptr + start_of_plane + lanes, mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + start_of_plane + lanes, y.to(y_ptr.dtype.element_ty), mask)
    else:
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            x = tl.load(x_ptr + start_of_plane + at, at < pixels, other=0.0).to(tl.float32)
            z = (x - mean) * factor + shift
            y = _activate(z, z, slope)
            if RESIDUAL:
                y += tl.load(residual_ptr + start_of_plane + at, at < pixels, other=0.0).to(tl.float32)
            tl.store(y_ptr + start_of_plane + at, y.to(y_ptr.dtype.element_ty), at < pixels)


@triton.jit
def _grad_z(grad_y_ptr, x_ptr, at, mask, mean, factor, shift, slope):
    """The centred input and the gradient before the activation, both zero outside the mask."""
    x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
    grad_y = tl.load(grad_y_ptr + at, mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, x - mean, 0.0)
    return centred, _activate(centred * factor + shift, grad_y, slope)


@triton.jit
def backward_planes(
    grad_y_ptr, x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, grad_x_ptr, grad_scale_ptr, grad_shift_ptr,
    pixels, slope, AFFINE: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    start_of_plane = plane * pixels
    lanes = tl.arange(0, BLOCK)
    mean = tl.load(mean_ptr + plane)
    rstd = tl.load(rstd_ptr + plane)
    factor, shift = _affine(scale_ptr, shift_ptr, plane, True, rstd, AFFINE)
    if WHOLE:
        mask = lanes < pixels
        centred, grad_z = _grad_z(grad_y_ptr, x_ptr, start_of_plane + lanes, mask, mean, factor, shift, slope)
        total = tl.sum(grad_z)
        total_centred = tl.sum(grad_z * centred)
    else:
        sums = tl.zeros([BLOCK], tl.float32)
        sums_centred = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            centred, grad_z = _grad_z(
                grad_y_ptr, x_ptr, start_of_plane + at, at < pixels, mean, factor, shift, slope
            )
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
        tl.store(grad_x_ptr + start_of_plane + lanes, grad_x.to(grad_x_ptr.dtype.element_ty), mask)
    else:
        for start in range(0, pixels, BLOCK):
            at = start + lanes
            centred, grad_z = _grad_z(
                grad_y_ptr, x_ptr, start_of_plane + at, at < pixels, mean, factor, shift, slope
            )
            grad_x = (grad_z - mean_grad - centred * slope_grad) * factor
            tl.store(grad_x_ptr + start_of_plane + at, grad_x.to(grad_x_ptr.dtype.element_ty), at < pixels)


@triton.jit
def _slice(channels, pixels, slice_pixels, COLUMNS: tl.constexpr):
    """This program's sample offset, code index, channels, first and last pixel, workspace offsets."""
    sample = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(0) * slice_pixels
    last = tl.minimum(first + slice_pixels, pixels)
    workspace = (sample * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + channel
    return sample * pixels * channels, sample * channels + channel, channel, first, last, workspace


@triton.jit
def forward_slices(
    x_ptr, workspace_ptr, channels, pixels, slice_pixels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Leaves each slice's mean and sum of squares about it."""
    base, code, channel, first, last, workspace = _slice(channels, pixels, slice_pixels, COLUMNS)
    rows = tl.arange(0, ROWS)
    inside = channel < channels
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        row = start + rows
        mask = (row < last)[:, None] & inside[None, :]
        at = base + row[:, None].to(tl.int64) * channels + channel[None, :]
        sums += tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
    mean = tl.sum(sums, 0) / (last - first)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        row = start + rows
        mask = (row < last)[:, None] & inside[None, :]
        at = base + row[:, None].to(tl.int64) * channels + channel[None, :]
        centred = tl.where(mask, tl.load(x_ptr + at, mask, other=0.0).to(tl.float32) - mean[None, :], 0.0)
        sums += centred * centred
    tl.store(workspace_ptr + workspace, mean, inside)
    tl.store(workspace_ptr + workspace + channels, tl.sum(sums, 0), inside)


@triton.jit
def _merge_at(code, channels, SLICES: tl.constexpr):
    """Workspace offsets (SLICES, COLUMNS) of all slices of this sample, and the slices' mask."""
    index = tl.arange(0, SLICES)
    sample = tl.program_id(2).to(tl.int64)
    channel = code - sample * channels
    at = (sample * tl.num_programs(0) + index[:, None]) * 2 * channels + channel[None, :]
    return at, index


@triton.jit
def forward_apply(
    x_ptr, scale_ptr, shift_ptr, residual_ptr, y_ptr, mean_ptr, rstd_ptr, workspace_ptr,
    channels, pixels, slice_pixels, slope, eps, AFFINE: tl.constexpr, RESIDUAL: tl.constexpr,
    SLICES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    base, code, channel, first, last, workspace = _slice(channels, pixels, slice_pixels, COLUMNS)
    inside = channel < channels
    slots, index = _merge_at(code, channels, SLICES)
    filled = (index < tl.num_programs(0))[:, None] & inside[None, :]
    count = tl.maximum(tl.minimum(pixels - index * slice_pixels, slice_pixels), 0).to(tl.float32)[:, None]
    means = tl.load(workspace_ptr + slots, filled, other=0.0)
    mean = tl.sum(means * count, 0) / pixels
    difference = tl.where(filled, means - mean[None, :], 0.0)
    squares = tl.load(workspace_ptr + slots + channels, filled, other=0.0) + count * difference * difference
    rstd = 1.0 / tl.sqrt(tl.sum(squares, 0) / pixels + eps)
    if tl.program_id(0) == 0:
        tl.store(mean_ptr + code, mean, inside)
        tl.store(rstd_ptr + code, rstd, inside)
    factor, shift = _affine(scale_ptr, shift_ptr, code, inside, rstd, AFFINE)
    rows = tl.arange(0, ROWS)
    for start in range(first, last, ROWS):
        row = start + rows
        mask = (row < last)[:, None] & inside[None, :]
        at = base + row[:, None].to(tl.int64) * channels + channel[None, :]
        x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
        z = (x - mean[None, :]) * factor[None, :] + shift[None, :]
        y = _activate(z, z, slope)
        if RESIDUAL:
            y += tl.load(residual_ptr + at, mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def backward_slices(
    grad_y_ptr, x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, workspace_ptr, channels, pixels,
    slice_pixels, slope, AFFINE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    base, code, channel, first, last, workspace = _slice(channels, pixels, slice_pixels, COLUMNS)
    inside = channel < channels
    mean = tl.load(mean_ptr + code, inside, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + code, inside, other=0.0)
    factor, shift = _affine(scale_ptr, shift_ptr, code, inside, rstd, AFFINE)
    rows = tl.arange(0, ROWS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    sums_centred = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        row = start + rows
        mask = (row < last)[:, None] & inside[None, :]
        at = base + row[:, None].to(tl.int64) * channels + channel[None, :]
        centred, grad_z = _grad_z(grad_y_ptr, x_ptr, at, mask, mean, factor[None, :], shift[None, :], slope)
        sums += grad_z
        sums_centred += grad_z * centred
    tl.store(workspace_ptr + workspace, tl.sum(sums, 0), inside)
    tl.store(workspace_ptr + workspace + channels, tl.sum(sums_centred, 0), inside)


@triton.jit
def backward_apply(
    grad_y_ptr, x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, grad_x_ptr, grad_scale_ptr, grad_shift_ptr,
    workspace_ptr, channels, pixels, slice_pixels, slope, AFFINE: tl.constexpr,
    SLICES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    base, code, channel, first, last, workspace = _slice(channels, pixels, slice_pixels, COLUMNS)
    inside = channel < channels
    slots, index = _merge_at(code, channels, SLICES)
    filled = (index < tl.num_programs(0))[:, None] & inside[None, :]
    total = tl.sum(tl.load(workspace_ptr + slots, filled, other=0.0), 0)
    total_centred = tl.sum(tl.load(workspace_ptr + slots + channels, filled, other=0.0), 0)
    mean = tl.load(mean_ptr + code, inside, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + code, inside, other=0.0)
    if tl.program_id(0) == 0:
        tl.store(grad_scale_ptr + code, total_centred * rstd, inside)
        tl.store(grad_shift_ptr + code, total, inside)
    factor, shift = _affine(scale_ptr, shift_ptr, code, inside, rstd, AFFINE)
    mean_grad = (total / pixels)[None, :]
    slope_grad = (total_centred / pixels * rstd * rstd)[None, :]
    rows = tl.arange(0, ROWS)
    for start in range(first, last, ROWS):
        row = start + rows
        mask = (row < last)[:, None] & inside[None, :]
        at = base + row[:, None].to(tl.int64) * channels + channel[None, :]
        centred, grad_z = _grad_z(grad_y_ptr, x_ptr, at, mask, mean, factor[None, :], shift[None, :], slope)
        grad_x = (grad_z - mean_grad - centred * slope_grad) * factor[None, :]
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask)


def _plane_options(pixels: int) -> dict:
    whole = pixels <= PLANE_BLOCK
    block = triton.next_power_of_2(pixels) if whole else PIECE
    return {"WHOLE": whole, "BLOCK": block, "num_warps": 8 if block > 2048 else 4}


class _Slices:
    """Grid and tile of the channels_last kernels for (batch, channels, pixels)."""

    def __init__(self, batch: int, channels: int, pixels: int) -> None:
        # 32 channels are 64 bytes of bf16, two sectors; wider tiles would leave too few programs at batch 8.
        self.columns = min(32, triton.next_power_of_2(channels))
        self.rows = min(TILE // self.columns, triton.next_power_of_2(pixels))
        wanted = min(MAX_SLICES, triton.cdiv(pixels, SLICE_PIXELS))
        self.pixels = triton.cdiv(triton.cdiv(pixels, wanted), self.rows) * self.rows
        self.count = triton.cdiv(pixels, self.pixels)
        self.grid = (self.count, triton.cdiv(channels, self.columns), batch)

    def workspace(self, like: Tensor) -> Tensor:
        batch, channels = self.grid[2], like.shape[1]
        return torch.empty((batch, self.count, 2, channels), dtype=torch.float32, device=like.device)


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    negative_slope: float,
    eps: float,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd); negative_slope 1 means no activation."""
    batch, channels, height, width = x.shape
    pixels = height * width
    y = torch.empty_like(x)
    mean = torch.empty((batch, channels), dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    flags = {"AFFINE": scale is not None, "RESIDUAL": residual is not None}
    inputs = (x, scale, shift, residual, y, mean, rstd)
    if not channels_last:
        grid = (batch * channels,)
        forward_planes[grid](*inputs, pixels, negative_slope, eps, **flags, **_plane_options(pixels))
        return y, mean, rstd
    slices = _Slices(batch, channels, pixels)
    workspace = slices.workspace(x)
    sizes = (channels, pixels, slices.pixels)
    tile = {"ROWS": slices.rows, "COLUMNS": slices.columns}
    forward_slices[slices.grid](x, workspace, *sizes, **tile)
    forward_apply[slices.grid](
        *inputs, workspace, *sizes, negative_slope, eps,
        **flags, SLICES=triton.next_power_of_2(slices.count), **tile,
    )  # fmt: skip
    return y, mean, rstd


def backward(
    grad_y: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    negative_slope: float,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_x, grad_scale, grad_shift), the last two float32 and given without scale and shift too."""
    batch, channels, height, width = x.shape
    pixels = height * width
    grad_x = torch.empty_like(x)
    grad_scale, grad_shift = torch.empty_like(mean), torch.empty_like(mean)
    affine = scale is not None
    inputs = (grad_y, x, scale, shift, mean, rstd)
    outputs = (grad_x, grad_scale, grad_shift)
    if not channels_last:
        grid = (batch * channels,)
        backward_planes[grid](
            *inputs, *outputs, pixels, negative_slope, AFFINE=affine, **_plane_options(pixels)
        )
        return outputs
    slices = _Slices(batch, channels, pixels)
    workspace = slices.workspace(x)
    sizes = (channels, pixels, slices.pixels, negative_slope)
    tile = {"AFFINE": affine, "ROWS": slices.rows, "COLUMNS": slices.columns}
    backward_slices[slices.grid](*inputs, workspace, *sizes, **tile)
    backward_apply[slices.grid](
        *inputs, *outputs, workspace, *sizes, SLICES=triton.next_power_of_2(slices.count), **tile
    )
    return outputs
