"""Triton body of `act_pad`; the definition is in dgnet_fast/ops/act_pad.py.

`forward` and `backward` take what the op prepared and allocated, by its names: tensors dense in NCHW or channels_last
order. A program writes a tile of pixels by channels; in NCHW a tile is as long along the pixels as it can be. No atomics: results are the
same from run to run. Height and width are compile-time constants (padding.py says why).

Device memory traffic, for n bytes of x and n' of padded y, is the minimum: forward n + n' (with sides 2n + n'), backward
2n + n', n + n' without activation. What the border shows is read twice, from the cache.
"""

from __future__ import annotations

from types import SimpleNamespace

import triton
import triton.language as tl
from dgnet_fast.kernels.padding import constants, copies, folded_of_sample, source
from dgnet_fast.kernels.slices import Slices, activate, columns_of, offset, tile
from torch import Tensor

# Elements of a tile; half of them where a gradient is folded, which takes registers.
TILE = 2048


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
    x_ptr, sides_ptr, bias_ptr, y_ptr, channels, pixels, padded_pixels, slope,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
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
    side = x
    if sides_ptr is not None:
        sides_ptr += sample * padded_pixels * channels
        side = _sides(sides_ptr, shown, channel, mask, channels, padded_pixels, CHANNELS_LAST, WIDTH, PADDING)
    to = offset(pixel, channel, padded_pixels, channels, CHANNELS_LAST)
    tl.store(y_ptr + to, activate(side, x, slope).to(y_ptr.dtype.element_ty), mask)


@triton.jit
def backward_tile(
    grad_y_ptr, sides_ptr, grad_x_ptr, channels, pixels, padded_pixels, slope,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """A tile of grad_x."""
    sample = tl.program_id(2).to(tl.int64)
    grad_y_ptr += sample * padded_pixels * channels
    grad_x_ptr += sample * pixels * channels
    pixel, channel, mask = tile(tl.program_id(0) * ROWS, pixels, channels, ROWS, COLUMNS)
    grad = folded_of_sample(
        grad_y_ptr, pixel, channel, mask, channels, padded_pixels, CHANNELS_LAST, HEIGHT, WIDTH, PADDING, COPIES
    )  # fmt: skip
    if sides_ptr is not None:
        sides_ptr += sample * padded_pixels * channels
        side = _sides(sides_ptr, pixel, channel, mask, channels, padded_pixels, CHANNELS_LAST, WIDTH, PADDING)
        grad = activate(side, grad, slope)
    at = offset(pixel, channel, pixels, channels, CHANNELS_LAST)
    tl.store(grad_x_ptr + at, grad.to(grad_x_ptr.dtype.element_ty), mask)


def _tiles(x: Tensor, pixels: int, channels_last: bool, elements: int) -> Slices:
    """Slices of one tile each over ``pixels`` of every sample of x."""
    batch, channels = x.shape[:2]
    # 128 channels are 256 bytes of bf16
    columns = columns_of(channels, pixels, channels_last, widest=128, tile=elements)
    return Slices(
        batch, channels, pixels, columns=columns, tile=elements, slice_elements=elements, most=pixels
    )


def forward(a: SimpleNamespace) -> None:
    """Fills y; negative_slope 1 means no activation."""
    _, channels, height, width = a.x.shape
    channels_last = not a.y.is_contiguous()
    pixels, padded_pixels = height * width, a.y.shape[2] * a.y.shape[3]
    tiles = _tiles(a.x, padded_pixels, channels_last, TILE)
    forward_tile[tiles.grid](
        a.x, a.sides, a.bias, a.y, channels, pixels, padded_pixels, a.negative_slope,
        CHANNELS_LAST=channels_last, **constants(height, width, a.padding, mapped=True), **tiles.tile,
    )  # fmt: skip


def backward(a: SimpleNamespace) -> None:
    """Fills grad_x."""
    _, channels, height, width = a.grad_x.shape
    channels_last = not a.grad_y.is_contiguous()
    pixels, padded_pixels = height * width, a.grad_y.shape[2] * a.grad_y.shape[3]
    tiles = _tiles(a.grad_x, pixels, channels_last, TILE // 2)
    backward_tile[tiles.grid](
        a.grad_y, a.sides, a.grad_x, channels, pixels, padded_pixels, a.negative_slope,
        CHANNELS_LAST=channels_last, COPIES=copies(height, width, a.padding),
        **constants(height, width, a.padding, mapped=True), **tiles.tile,
    )  # fmt: skip
