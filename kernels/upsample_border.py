"""Triton body of `upsample_border`; the definition is in dgnet_fast/ops/upsample_border.py.

`forward` and `backward` take what the op prepared and allocated, by its names: tensors dense in NCHW or channels_last
order. One kernel each way; a program serves a tile of pixels by channels. No atomics: results are the same from run to run.

The pixels of a sample are numbered through the padded picture, then the two rows and the two columns. Device memory
traffic is the minimum, each tensor once; what the border shows is read again from the cache.
"""

from __future__ import annotations

from types import SimpleNamespace

import triton
import triton.language as tl
from dgnet_fast.kernels.slices import Slices, columns_of, offset, tile
from torch import Tensor

TILE = 1024


@triton.jit
def _clamped(index, SIZE: tl.constexpr):
    return tl.minimum(tl.maximum(index, 0), SIZE - 1)


@triton.jit
def _line(
    out_ptr, value, number, FIRST: tl.constexpr, LENGTH: tl.constexpr, channel, mask, channels,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Writes what of a tile belongs to the line whose first pixel has the number FIRST."""
    place = number - FIRST
    out_ptr += tl.program_id(2).to(tl.int64) * LENGTH * channels
    inside = mask & (place >= 0) & (place < LENGTH)
    to = offset(place, channel, LENGTH, channels, CHANNELS_LAST)
    tl.store(out_ptr + to, value.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def forward_tile(
    x_ptr, padded_ptr, above_ptr, below_ptr, before_ptr, behind_ptr, channels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of the padded picture and the lines."""
    PITCH: tl.constexpr = WIDTH + 2
    PADDED: tl.constexpr = (HEIGHT + 2) * PITCH
    ROW: tl.constexpr = 2 * WIDTH + 4
    COLUMN: tl.constexpr = 2 * HEIGHT + 4
    number, channel, mask = tile(
        tl.program_id(0) * ROWS, PADDED + 2 * ROW + 2 * COLUMN, channels, ROWS, COLUMNS
    )
    x_ptr += tl.program_id(2).to(tl.int64) * HEIGHT * WIDTH * channels

    # of the padded picture
    row = _clamped(number // PITCH - 1, HEIGHT)
    column = _clamped(number % PITCH - 1, WIDTH)
    outer_row, outer_column = row, column
    # of a row: along it the large picture is reflected
    along = (number - PADDED) % ROW - 2
    along = (2 * WIDTH - 1) - tl.abs((2 * WIDTH - 1) - tl.abs(along))
    last = number >= PADDED + ROW
    is_row = (number >= PADDED) & (number < PADDED + 2 * ROW)
    row = tl.where(is_row, tl.where(last, HEIGHT - 2, 1), row)
    outer_row = tl.where(is_row, tl.where(last, HEIGHT - 1, 0), outer_row)
    column = tl.where(is_row, along // 2, column)
    outer_column = tl.where(is_row, along // 2, outer_column)
    # of a column: beyond its ends it is repeated
    along = _clamped((number - PADDED - 2 * ROW) % COLUMN - 2, 2 * HEIGHT)
    last = number >= PADDED + 2 * ROW + COLUMN
    is_column = number >= PADDED + 2 * ROW
    column = tl.where(is_column, tl.where(last, WIDTH - 2, 1), column)
    outer_column = tl.where(is_column, tl.where(last, WIDTH - 1, 0), outer_column)
    row = tl.where(is_column, along // 2, row)
    outer_row = tl.where(is_column, along // 2, outer_row)

    at = offset(row * WIDTH + column, channel, HEIGHT * WIDTH, channels, CHANNELS_LAST)
    x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
    _line(padded_ptr, x, number, 0, PADDED, channel, mask, channels, CHANNELS_LAST)
    if tl.program_id(0) * ROWS + ROWS > PADDED:
        at = offset(outer_row * WIDTH + outer_column, channel, HEIGHT * WIDTH, channels, CHANNELS_LAST)
        x -= tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
        _line(above_ptr, x, number, PADDED, ROW, channel, mask, channels, CHANNELS_LAST)
        _line(below_ptr, x, number, PADDED + ROW, ROW, channel, mask, channels, CHANNELS_LAST)
        _line(before_ptr, x, number, PADDED + 2 * ROW, COLUMN, channel, mask, channels, CHANNELS_LAST)
        _line(
            behind_ptr, x, number, PADDED + 2 * ROW + COLUMN, COLUMN, channel, mask, channels, CHANNELS_LAST
        )


@triton.jit
def _gathered(grad_ptr, place, there, channel, channels, LENGTH: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The gradient at a place of a line or picture, 0 where it is not there."""
    grad_ptr += tl.program_id(2).to(tl.int64) * LENGTH * channels
    at = offset(place, channel, LENGTH, channels, CHANNELS_LAST)
    return tl.load(grad_ptr + at, there & (channel < channels), other=0.0).to(tl.float32)


@triton.jit
def _from_line(
    near_ptr, far_ptr, across, along, mask, channel, channels, ACROSS: tl.constexpr, ALONG: tl.constexpr,
    REFLECTED: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """What pixels get of a pair of lines that lie `across` = 1 less 0, and ACROSS - 2 less ACROSS - 1."""
    LENGTH: tl.constexpr = 2 * ALONG + 4
    total = 0.0
    for far in tl.static_range(2):
        inner = across == (ACROSS - 2 if far else 1)
        outer = across == (ACROSS - 1 if far else 0)
        grad_ptr = far_ptr if far else near_ptr
        there = mask & (inner | outer)
        found = 0.0
        for k in tl.static_range(2):
            found += _gathered(grad_ptr, 2 * along + 2 + k, there, channel, channels, LENGTH, CHANNELS_LAST)
            # its copies beyond the ends: of the two pixels there one each, or of the last pixel both
            begin, end = along == 0, along == ALONG - 1
            before, behind = k + 0 * along, k + 2 * ALONG + 2 + 0 * along
            if REFLECTED:
                begin, end = along == 1 - k, along == ALONG - 1 - k
            found += _gathered(grad_ptr, before, there & begin, channel, channels, LENGTH, CHANNELS_LAST)
            found += _gathered(grad_ptr, behind, there & end, channel, channels, LENGTH, CHANNELS_LAST)
        total += tl.where(inner, found, 0.0) - tl.where(outer, found, 0.0)
    return total


@triton.jit
def backward_tile(
    padded_ptr, above_ptr, below_ptr, before_ptr, behind_ptr, grad_x_ptr, channels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of grad_x."""
    PITCH: tl.constexpr = WIDTH + 2
    PADDED: tl.constexpr = (HEIGHT + 2) * PITCH
    pixel, channel, mask = tile(tl.program_id(0) * ROWS, HEIGHT * WIDTH, channels, ROWS, COLUMNS)
    row, column = pixel // WIDTH, pixel % WIDTH
    inside = pixel < HEIGHT * WIDTH
    place = (row + 1) * PITCH + column + 1
    total = _gathered(padded_ptr, place, inside, channel, channels, PADDED, CHANNELS_LAST)
    border = (row <= 1) | (row >= HEIGHT - 2) | (column <= 1) | (column >= WIDTH - 2)
    if tl.max(border.to(tl.int32)) > 0:
        for i in tl.static_range(-1, 2):
            has_row = (row == 0) if i < 0 else (row == HEIGHT - 1)
            has_row = has_row | (i == 0)
            for j in tl.static_range(-1, 2):
                has_column = (column == 0) if j < 0 else (column == WIDTH - 1)
                has_column = has_column | (j == 0)
                if i != 0 or j != 0:
                    total += _gathered(
                        padded_ptr, place + i * PITCH + j, inside & has_row & has_column, channel, channels,
                        PADDED, CHANNELS_LAST,
                    )  # fmt: skip
        total += _from_line(
            above_ptr, below_ptr, row, column, inside, channel, channels, HEIGHT, WIDTH, True, CHANNELS_LAST
        )
        total += _from_line(
            before_ptr,
            behind_ptr,
            column,
            row,
            inside,
            channel,
            channels,
            WIDTH,
            HEIGHT,
            False,
            CHANNELS_LAST,
        )
    grad_x_ptr += tl.program_id(2).to(tl.int64) * HEIGHT * WIDTH * channels
    at = offset(pixel, channel, HEIGHT * WIDTH, channels, CHANNELS_LAST)
    tl.store(grad_x_ptr + at, total.to(grad_x_ptr.dtype.element_ty), mask)


def _launch(x: Tensor, pixels: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Grid and constants for tiles over ``pixels`` of every sample of a picture x."""
    batch, channels, height, width = x.shape
    channels_last = not x.is_contiguous()
    columns = columns_of(channels, pixels, channels_last, widest=128, tile=TILE)
    cut = Slices(batch, channels, pixels, columns=columns, tile=TILE, slice_elements=TILE, most=pixels)
    return cut.grid, {"CHANNELS_LAST": channels_last, "HEIGHT": height, "WIDTH": width, **cut.tile}


def forward(a: SimpleNamespace) -> None:
    """Fills padded, above, below, before and behind."""
    lines = (a.above, a.below, a.before, a.behind)
    pixels = sum(t.shape[2] * t.shape[3] for t in (a.padded, *lines))
    grid, constants = _launch(a.x, pixels)
    forward_tile[grid](a.x, a.padded, *lines, a.x.shape[1], **constants)


def backward(a: SimpleNamespace) -> None:
    """Fills grad_x."""
    lines = (a.above, a.below, a.before, a.behind)
    grid, constants = _launch(a.grad_x, a.grad_x.shape[2] * a.grad_x.shape[3])
    backward_tile[grid](a.padded, *lines, a.grad_x, a.grad_x.shape[1], **constants)
