"""Triton body of `act_pad`; the definition is in dgnet_fast/ops/act_pad.py.

`forward` and `backward` take what the op prepared and allocated, by its names: tensors dense in NCHW or channels_last
order, a residual with its own strides. A program writes a tile of pixels by channels; in NCHW a tile is as long along the
pixels as it can be. No atomics: results are the same from run to run. Height and width are compile-time constants (padding.py
says why). Where the gradient of a bias is wanted, a backward program goes through several tiles and leaves its sums in a
workspace, which a second kernel adds up in a fixed order.

Device memory traffic, for n bytes of x and n' of padded y, is the minimum: forward n + n' (with sides 2n + n'), backward
2n + n', n + n' without activation; a residual and the gradient of a second reader of y are n each. What the border shows
is read twice, from the cache. The workspace is about 4 kB a channel.
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
from torch import Tensor

# Elements of a tile; half of them where a gradient is folded, which takes registers.
TILE = 2048
# Backward programs where a bias is: two to three rounds of what an H100's 132 multiprocessors hold.
MOST_PROGRAMS = 1024


@triton.jit
def _sides(
    sides_ptr, pixel, channel, mask, channels, padded_pixels,
    CHANNELS_LAST: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """What stands in a padded picture at pixel numbers of the picture within."""
    PITCH: tl.constexpr = WIDTH + 2 * PADDING
    place = (pixel // WIDTH + PADDING) * PITCH + pixel % WIDTH + PADDING
    at = offset(place, channel, padded_pixels, channels, CHANNELS_LAST)
    return tl.load(sides_ptr + at, mask, other=0.0).to(tl.float32)


@triton.jit
def forward_tile(
    x_ptr, sides_ptr, bias_ptr, residual_ptr, y_ptr, channels, pixels, padded_pixels, residual_sample,
    residual_channel, residual_row, slope, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """A tile of the padded result."""
    sample = tl.program_id(2).to(tl.int64)
    x_ptr += sample * pixels * channels
    y_ptr += sample * padded_pixels * channels
    pixel, channel, mask = tile(tl.program_id(0) * ROWS, padded_pixels, channels, ROWS, COLUMNS)
    row, column = source(pixel, HEIGHT, WIDTH, PADDING)
    shown = row * WIDTH + column
    at = offset(shown, channel, pixels, channels, CHANNELS_LAST)
    x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + channel, channel < channels, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual_ptr += sample * residual_sample
        at = row.to(tl.int64) * residual_row
        at += (
            column * channels + channel if CHANNELS_LAST else channel.to(tl.int64) * residual_channel + column
        )
        x += tl.load(residual_ptr + at, mask, other=0.0).to(tl.float32)
    side = x
    if sides_ptr is not None:
        sides_ptr += sample * padded_pixels * channels
        side = _sides(sides_ptr, shown, channel, mask, channels, padded_pixels, CHANNELS_LAST, WIDTH, PADDING)
    to = offset(pixel, channel, padded_pixels, channels, CHANNELS_LAST)
    tl.store(y_ptr + to, activate(side, x, slope).to(y_ptr.dtype.element_ty), mask)


@triton.jit
def _gradient(
    grad_y_ptr, sides_ptr, grad_again_ptr, at, pixel, channel, mask, channels, padded_pixels, slope,
    CHANNELS_LAST: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr,
    COPIES: tl.constexpr,
):  # fmt: skip
    """A tile of grad_x in float32, zero outside the mask."""
    grad = folded_of_sample(
        grad_y_ptr, pixel, channel, mask, channels, padded_pixels, CHANNELS_LAST, HEIGHT, WIDTH, PADDING, COPIES
    )  # fmt: skip
    if grad_again_ptr is not None:
        grad += tl.load(grad_again_ptr + at, mask, other=0.0).to(tl.float32)
    if sides_ptr is not None:
        side = _sides(sides_ptr, pixel, channel, mask, channels, padded_pixels, CHANNELS_LAST, WIDTH, PADDING)
        grad = activate(side, grad, slope)
    return grad


@triton.jit
def backward_tiles(
    grad_y_ptr, sides_ptr, grad_again_ptr, grad_x_ptr, parts_ptr, channels, pixels, padded_pixels, slice_pixels,
    slope, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, PADDING: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """A slice of grad_x, tile by tile; with `parts` (samples, slices, channels) the slice's sums too."""
    sample, index, first, last = bounds(pixels, slice_pixels, False)
    grad_y_ptr += sample * padded_pixels * channels
    grad_x_ptr += sample * pixels * channels
    if sides_ptr is not None:
        sides_ptr += sample * padded_pixels * channels
    if grad_again_ptr is not None:
        grad_again_ptr += sample * pixels * channels
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        pixel, channel, mask = tile(start, last, channels, ROWS, COLUMNS)
        at = offset(pixel, channel, pixels, channels, CHANNELS_LAST)
        grad = _gradient(
            grad_y_ptr, sides_ptr, grad_again_ptr, at, pixel, channel, mask, channels, padded_pixels, slope,
            CHANNELS_LAST, HEIGHT, WIDTH, PADDING, COPIES,
        )  # fmt: skip
        tl.store(grad_x_ptr + at, grad.to(grad_x_ptr.dtype.element_ty), mask)
        sums += grad
    if parts_ptr is not None:
        _, channel, _ = tile(first, last, channels, ROWS, COLUMNS)
        to = (sample * tl.num_programs(0) + index) * channels + channel
        tl.store(parts_ptr + to, tl.sum(sums, 0)[None, :], channel < channels)


def _tiles(x: Tensor, pixels: int, channels_last: bool, elements: int, most: int | None = None) -> Slices:
    """Slices of one tile each, or ``most`` slices, over ``pixels`` of every sample of x."""
    batch, channels = x.shape[:2]
    # 128 channels are 256 bytes of bf16
    columns = columns_of(channels, pixels, channels_last, widest=128, tile=elements)
    return Slices(
        batch, channels, pixels, columns=columns, tile=elements, slice_elements=elements, most=most or pixels
    )


def forward(a: SimpleNamespace) -> None:
    """Fills y; negative_slope 1 means no activation."""
    _, channels, height, width = a.x.shape
    channels_last = not a.y.is_contiguous()
    pixels, padded_pixels = height * width, a.y.shape[2] * a.y.shape[3]
    tiles = _tiles(a.x, padded_pixels, channels_last, TILE)
    strides = (0, 0, 0) if a.residual is None else a.residual.stride()[:3]
    forward_tile[tiles.grid](
        a.x, a.sides, a.bias, a.residual, a.y, channels, pixels, padded_pixels, *strides, a.negative_slope,
        CHANNELS_LAST=channels_last, **constants(height, width, a.padding, mapped=True), **tiles.tile,
    )  # fmt: skip


def backward(a: SimpleNamespace) -> None:
    """Fills grad_x, and grad_bias unless it is empty."""
    batch, channels, height, width = a.grad_x.shape
    channels_last = not a.grad_y.is_contiguous()
    pixels, padded_pixels = height * width, a.grad_y.shape[2] * a.grad_y.shape[3]
    most = max(1, MOST_PROGRAMS // batch) if a.grad_bias.numel() else None
    tiles = _tiles(a.grad_x, pixels, channels_last, TILE // 2, most)
    parts = batch * tiles.count
    workspace = a.grad_y.new_empty((parts, channels), dtype=torch.float32) if most else None
    backward_tiles[tiles.grid](
        a.grad_y, a.sides, a.grad_again, a.grad_x, workspace, channels, pixels, padded_pixels, tiles.pixels,
        a.negative_slope, CHANNELS_LAST=channels_last, COPIES=copies(height, width, a.padding),
        **constants(height, width, a.padding, mapped=True), **tiles.tile,
    )  # fmt: skip
    if most:
        grid, sums = summing(workspace)
        channel_sums[grid](workspace, a.grad_bias, *workspace.shape, **sums)
