"""Tiles over pictures in slices, shared by the Triton bodies: a program serves some channels of one slice.

A sample has `pixels` by `channels` elements; the grid is (slices of the pixels, blocks of channels, batch).
First kernels leave each slice's sums in a workspace, second ones merge them in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def activate(z, value, slope):
    """`value` through LeakyReLU's branch that z takes."""
    return tl.where(z > 0, value, value * slope)


@triton.jit
def bounds(pixels, slice_pixels, REVERSED: tl.constexpr):
    """This program's sample, its slice, the slice's first pixel and the one after its last.

    Kernels that read again what the one before them has read go REVERSED, so that they begin with what is
    still in the L2 cache.
    """
    index, sample = tl.program_id(0), tl.program_id(2)
    if REVERSED:
        index, sample = tl.num_programs(0) - 1 - index, tl.num_programs(2) - 1 - sample
    first = index * slice_pixels
    return sample.to(tl.int64), index, first, tl.minimum(first + slice_pixels, pixels)


@triton.jit
def tile(start, last, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pixels (ROWS, 1), channels (1, COLUMNS) and their mask (ROWS, COLUMNS)."""
    pixel = start + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return pixel, channel, (pixel < last) & (channel < channels)


@triton.jit
def offset(pixel, channel, pixels, channels, CHANNELS_LAST: tl.constexpr):
    """Offset in a sample; int64, for a sample may have more than 2**31 bytes."""
    if CHANNELS_LAST:
        at = pixel.to(tl.int64) * channels + channel
    else:
        at = channel.to(tl.int64) * pixels + pixel
    return at


# Elements of a workspace that a program of `channel_sums` reads at a time, and the channels it serves: few, so that
# several programs share the work.
SUM_ELEMENTS = 4096
SUM_COLUMNS = 8


@triton.jit
def channel_sums(parts_ptr, sums_ptr, parts, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Adds up partial sums (parts, channels), float32, in a fixed order."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, parts, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
        at = part * channels + channel
        sums += tl.load(parts_ptr + at, (part < parts) & (channel < channels), other=0.0)
    total = tl.sum(sums, 0)[None, :].to(sums_ptr.dtype.element_ty)
    tl.store(sums_ptr + channel, total, channel < channels)


def summing(parts: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Grid and constants of `channel_sums` for ``parts``."""
    count, channels = parts.shape
    columns = min(SUM_COLUMNS, triton.next_power_of_2(channels))
    rows = min(SUM_ELEMENTS // columns, triton.next_power_of_2(count))
    return (triton.cdiv(channels, columns),), {"ROWS": rows, "COLUMNS": columns}


def columns_of(channels: int, pixels: int, channels_last: bool, *, widest: int, tile: int) -> int:
    """Channels of a tile: up to ``widest`` that lie side by side; in NCHW more than one only where a plane is shorter than
    a tile.
    """
    if not channels_last:
        widest = max(1, tile // triton.next_power_of_2(pixels))
    return min(widest, triton.next_power_of_2(channels))


class Slices:
    """Tile and grid for (batch, channels, pixels).

    `columns` channels by `rows` pixels make a tile, `pixels` is the slice's length, `count` the number of
    slices.
    """

    def __init__(
        self,
        batch: int,
        channels: int,
        pixels: int,
        *,
        columns: int,
        tile: int = 2048,
        slice_elements: int = 8192,
        most: int = 32,
    ) -> None:
        self.rows = min(tile // columns, triton.next_power_of_2(pixels))
        self.columns = columns
        wanted = min(most, triton.cdiv(pixels * columns, slice_elements))
        self.pixels = triton.cdiv(triton.cdiv(pixels, wanted), self.rows) * self.rows
        self.count = triton.cdiv(pixels, self.pixels)
        self.grid = (self.count, triton.cdiv(channels, columns), batch)

    @property
    def tile(self) -> dict[str, int]:
        return {"ROWS": self.rows, "COLUMNS": self.columns}
