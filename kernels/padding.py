"""Index maps of reflect padding, shared by the Triton bodies.

A picture (HEIGHT, WIDTH) padded by PADDING has (HEIGHT + 2 PADDING, WIDTH + 2 PADDING) pixels, numbered row by
row. The three are compile-time constants, because pixel numbers are divided by a width: by a constant that is
a multiplication (5 instructions, with a run-time width about 20, of some 40 that a bfloat16 element may cost
before arithmetic binds instead of memory). Without padding all three are 0 and nothing is divided.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def reflected(index, SIZE: tl.constexpr):
    return (SIZE - 1) - tl.abs((SIZE - 1) - tl.abs(index))


@triton.jit
def source(pixel, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr):
    """Row and column, in the picture, of what padded pixel number `pixel` shows."""
    PITCH: tl.constexpr = WIDTH + 2 * PADDING
    row = reflected(pixel // PITCH - PADDING, HEIGHT)
    return row, reflected(pixel % PITCH - PADDING, WIDTH)


@triton.jit
def _copy(index, SIZE: tl.constexpr, PADDING: tl.constexpr, WHICH: tl.constexpr, COPIES: tl.constexpr):
    """Padded place of the copy number WHICH of row or column `index`, and whether there is one.

    Copy 0 is the row itself. The border on either side mirrors rows 1 to PADDING away from it; with COPIES 2 a
    row is mirrored once at most and copy 1 is on either side, with COPIES 3 copies 1 and 2 are on one each.
    """
    near, far = PADDING - index, 2 * (SIZE - 1) - index + PADDING
    has_near = (index >= 1) & (index <= PADDING)
    has_far = (index <= SIZE - 2) & (index >= SIZE - 1 - PADDING)
    if WHICH == 0:
        place, there = index + PADDING, index >= 0
    elif COPIES == 2:
        place, there = tl.where(has_near, near, far), has_near | has_far
    elif WHICH == 1:
        place, there = near, has_near
    else:
        place, there = far, has_far
    return place, there


@triton.jit
def folded(
    grad_ptr, pixel, channel, mask, channel_stride, pixel_stride,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """Sum, in float32, of a padded gradient over the copies of picture pixels; zero outside the mask.

    `pixel` is the number in the picture, not padded; it broadcasts against `channel`.
    """
    if PADDING == 0:
        at = pixel * pixel_stride + channel * channel_stride
        total = tl.load(grad_ptr + at, mask, other=0.0).to(tl.float32)
    else:
        PITCH: tl.constexpr = WIDTH + 2 * PADDING
        total = 0.0
        for i in tl.static_range(COPIES):
            row, has_row = _copy(pixel // WIDTH, HEIGHT, PADDING, i, COPIES)
            for j in tl.static_range(COPIES):
                column, has_column = _copy(pixel % WIDTH, WIDTH, PADDING, j, COPIES)
                at = (row * PITCH + column) * pixel_stride + channel * channel_stride
                total += tl.load(grad_ptr + at, mask & has_row & has_column, other=0.0).to(tl.float32)
    return total


@triton.jit
def folded_of_sample(
    grad_ptr, pixel, channel, mask, channels, padded_pixels, CHANNELS_LAST: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """`folded` in a sample that is dense in either order."""
    if CHANNELS_LAST:
        total = folded(grad_ptr, pixel, channel, mask, 1, channels, HEIGHT, WIDTH, PADDING, COPIES)
    else:
        total = folded(grad_ptr, pixel, channel, mask, padded_pixels, 1, HEIGHT, WIDTH, PADDING, COPIES)
    return total


def constants(height: int, width: int, padding: int, mapped: bool | None = None) -> dict[str, int]:
    """HEIGHT, WIDTH and PADDING for a kernel; all 0 where it need not know rows and columns."""
    if not (padding if mapped is None else mapped):
        return {"HEIGHT": 0, "WIDTH": 0, "PADDING": 0}
    return {"HEIGHT": height, "WIDTH": width, "PADDING": padding}


def copies(height: int, width: int, padding: int) -> int:
    """COPIES of `folded`: a row or column appears at most so often in the padded picture."""
    if padding == 0:
        return 1
    return 2 if min(height, width) > 2 * padding + 1 else 3
