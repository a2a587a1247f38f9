"""Triton body of `conv3x3_act`; the definition is in dgnet_fast/ops/conv3x3_act.py.

`forward` and `backward` take what the op prepared and allocated, by its names. The kernels work in channels_last; tensors
dense in NCHW are copied there and back. Pixels of all samples are one table of rows: a program multiplies, tap by tap, the
rows that its pixels show with the filters' slice of the tap, so that nothing is padded or unfolded in memory, and the nine
reads of a value come from the caches. Height and width are compile-time constants (padding.py says why).

Device memory traffic for n bytes of x and m of y, without the filters: forward n + m; gradient of x 2m + n, each pixel and its
mirror images beyond the border added up before they are multiplied; gradients of weight and bias n + 2m. cuDNN's convolution
with `act_pad` behind it: n + 3m, m + 4n and n + m. No atomics: partial sums of the weights' gradient are added up in a fixed
order, and results are the same from run to run.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from dgnet_fast.kernels.padding import reflected
from dgnet_fast.kernels.slices import activate, channel_sums, summing
from torch import Tensor

# Pixels a program multiplies at a time; 32 channels of bfloat16 are half a line of 128 bytes.
ROWS = 128
# The most channels and filters a program multiplies at a time. tl.dot wants at least 16.
CHANNELS = 64
LEAST = 16
# Parts of the pixels over which a weight's gradient is summed: with its nine taps four blocks a multiprocessor of an H100.
SPLITS = 64


@triton.jit
def _places(first, pixels, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Number of the sample's first pixel, row, column and mask of ROWS pixels."""
    pixel = first + tl.arange(0, ROWS)
    place = pixel % (HEIGHT * WIDTH)
    return (pixel - place).to(tl.int64), place // WIDTH, place % WIDTH, pixel < pixels


@triton.jit
def _gathered(x_ptr, at, channel, channels, mask):
    """Rows `at` of a table, in its own dtype; 0 outside the mask."""
    inside = mask[:, None] & (channel[None, :] < channels)
    return tl.load(x_ptr + at[:, None] * channels + channel[None, :], inside, other=0.0)


@triton.jit
def _filters(weight_ptr, output, outputs, tap, channel, channels):
    """A tap's slice of the filters, (filters, channels)."""
    at = (output[:, None] * 9 + tap) * channels + channel[None, :]
    return tl.load(weight_ptr + at, (output[:, None] < outputs) & (channel[None, :] < channels), other=0.0)


@triton.jit
def forward_tile(
    x_ptr, weight_ptr, bias_ptr, y_ptr, pixels, channels, outputs, slope,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of y: ROWS pixels by OUTPUTS channels."""
    first, row, column, inside = _places(tl.program_id(0) * ROWS, pixels, HEIGHT, WIDTH, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    blocks = tl.cdiv(channels, CHANNELS)
    for step in range(0, 9 * blocks):
        tap = step // blocks
        channel = step % blocks * CHANNELS + tl.arange(0, CHANNELS)
        shown = reflected(row + tap // 3 - 1, HEIGHT) * WIDTH + reflected(column + tap % 3 - 1, WIDTH)
        x = _gathered(x_ptr, first + shown, channel, channels, inside)
        weight = _filters(weight_ptr, output, outputs, tap, channel, channels)
        total = tl.dot(x, tl.trans(weight), total, input_precision=PRECISION)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + output, output < outputs, other=0.0).to(tl.float32)[None, :]
    at = first + row * WIDTH + column
    to = y_ptr + at[:, None] * outputs + output[None, :]
    y = activate(total, total, slope).to(y_ptr.dtype.element_ty)
    tl.store(to, y, inside[:, None] & (output[None, :] < outputs))


@triton.jit
def _grad_before(grad_y_ptr, y_ptr, at, output, outputs, mask, slope):
    """The gradient before the activation, in float32; y says which branch it takes."""
    grad = _gathered(grad_y_ptr, at, output, outputs, mask).to(tl.float32)
    if y_ptr is not None:
        grad = activate(_gathered(y_ptr, at, output, outputs, mask).to(tl.float32), grad, slope)
    return grad


@triton.jit
def input_tile(
    grad_y_ptr, y_ptr, weight_ptr, grad_x_ptr, pixels, channels, outputs, slope,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of grad_x: ROWS pixels by CHANNELS channels."""
    first, row, column, inside = _places(tl.program_id(0) * ROWS, pixels, HEIGHT, WIDTH, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    # rows and columns next to the outermost are shown by the border too
    border = (row == 1) | (row == HEIGHT - 2) | (column == 1) | (column == WIDTH - 2)
    mirrored = tl.max((border & inside).to(tl.int32)) > 0
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    blocks = tl.cdiv(outputs, OUTPUTS)
    for step in range(0, 9 * blocks):
        tap = step // blocks
        output = step % blocks * OUTPUTS + tl.arange(0, OUTPUTS)
        up, left = row + 1 - tap // 3, column + 1 - tap % 3
        has_row = inside & (up >= 0) & (up < HEIGHT)
        has_column = (left >= 0) & (left < WIDTH)
        grad = _grad_before(
            grad_y_ptr, y_ptr, first + up * WIDTH + left, output, outputs, has_row & has_column, slope
        )
        if mirrored:
            # the border's line on a pixel's side meets the outermost line of y, by the outermost tap
            edge_row = tl.where(tap // 3 == 0, 0, HEIGHT - 1)
            edge_column = tl.where(tap % 3 == 0, 0, WIDTH - 1)
            on_row = ((tap // 3 == 0) & (row == 1)) | ((tap // 3 == 2) & (row == HEIGHT - 2))
            on_column = ((tap % 3 == 0) & (column == 1)) | ((tap % 3 == 2) & (column == WIDTH - 2))
            on_row = on_row & inside
            at = first + edge_row * WIDTH
            grad += _grad_before(grad_y_ptr, y_ptr, at + left, output, outputs, on_row & has_column, slope)
            grad += _grad_before(
                grad_y_ptr, y_ptr, at + edge_column, output, outputs, on_row & on_column, slope
            )
            at = first + up * WIDTH + edge_column
            grad += _grad_before(grad_y_ptr, y_ptr, at, output, outputs, has_row & on_column, slope)
        weight = _filters(weight_ptr, output, outputs, tap, channel, channels)
        total = tl.dot(grad.to(weight.dtype), weight, total, input_precision=PRECISION)
    at = first + row * WIDTH + column
    to = grad_x_ptr + at[:, None] * channels + channel[None, :]
    mask = inside[:, None] & (channel[None, :] < channels)
    tl.store(to, total.to(grad_x_ptr.dtype.element_ty), mask)


@triton.jit
def weight_part(
    grad_y_ptr, y_ptr, x_ptr, parts_ptr, bias_parts_ptr, pixels, part_pixels, channels, outputs, slope,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a part of the pixels, the sums of a tap's gradient in `parts` (parts, outputs, 9, channels) and, by the programs of
    tap 0 and the first channels, of the bias's in `bias_parts` (parts, outputs).
    """
    tap, part = tl.program_id(0), tl.program_id(1)
    blocks = tl.cdiv(channels, CHANNELS)
    output = tl.program_id(2) // blocks * OUTPUTS + tl.arange(0, OUTPUTS)
    channel = tl.program_id(2) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([OUTPUTS, CHANNELS], tl.float32)
    sums = tl.zeros([OUTPUTS], tl.float32)
    last = tl.minimum((part + 1) * part_pixels, pixels)
    for start in range(part * part_pixels, last, ROWS):
        first, row, column, inside = _places(start, last, HEIGHT, WIDTH, ROWS)
        at = first + row * WIDTH + column
        grad = _grad_before(grad_y_ptr, y_ptr, at, output, outputs, inside, slope)
        shown = reflected(row + tap // 3 - 1, HEIGHT) * WIDTH + reflected(column + tap % 3 - 1, WIDTH)
        x = _gathered(x_ptr, first + shown, channel, channels, inside)
        total = tl.dot(tl.trans(grad.to(x.dtype)), x, total, input_precision=PRECISION)
        sums += tl.sum(grad, 0)
    to = ((part * outputs + output[:, None]) * 9 + tap) * channels + channel[None, :]
    tl.store(parts_ptr + to, total, (output[:, None] < outputs) & (channel[None, :] < channels))
    if (tap == 0) & (tl.program_id(2) % blocks == 0):
        tl.store(bias_parts_ptr + part * outputs + output, sums, output < outputs)


def _block(channels: int) -> int:
    return max(LEAST, min(CHANNELS, triton.next_power_of_2(channels)))


def _constants(x: Tensor, outputs: int) -> dict[str, Any]:
    _, channels, height, width = x.shape
    wide = max(channels, outputs) > 32
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "ROWS": ROWS // 2 if wide else ROWS,
        "CHANNELS": _block(channels),
        "OUTPUTS": _block(outputs),
        "PRECISION": "tf32" if torch.backends.cudnn.allow_tf32 else "ieee",
        # with four warps, or with ROWS of 64 channels, the gradient of x spills
        "num_warps": 8 if wide or x.dtype == torch.float32 else 4,
    }


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _filled(to: Tensor, made: Tensor) -> None:
    if to is not made:
        to.copy_(made)


def forward(a: SimpleNamespace) -> None:
    """Fills y."""
    x, weight, y = _last(a.x), _last(a.weight), _last(a.y)
    outputs, channels = weight.shape[:2]
    pixels = x.numel() // channels
    constants = _constants(x, outputs)
    grid = (triton.cdiv(pixels, constants["ROWS"]), triton.cdiv(outputs, constants["OUTPUTS"]))
    forward_tile[grid](x, weight, a.bias, y, pixels, channels, outputs, a.negative_slope, **constants)
    _filled(a.y, y)


def backward(a: SimpleNamespace) -> None:
    """Fills grad_x, grad_weight and grad_bias, each unless it is empty."""
    x, weight, grad_y = _last(a.x), _last(a.weight), _last(a.grad_y)
    y = None if a.negative_slope == 1 else _last(a.y)
    outputs, channels = weight.shape[:2]
    pixels = x.numel() // channels
    constants = _constants(x, outputs)
    if a.grad_x.numel():
        grad_x = _last(a.grad_x)
        grid = (triton.cdiv(pixels, constants["ROWS"]), triton.cdiv(channels, constants["CHANNELS"]))
        input_tile[grid](grad_y, y, weight, grad_x, pixels, channels, outputs, a.negative_slope, **constants)
        _filled(a.grad_x, grad_x)
    if a.grad_weight.numel() or a.grad_bias.numel():
        part_pixels = triton.cdiv(triton.cdiv(pixels, SPLITS), constants["ROWS"]) * constants["ROWS"]
        count = triton.cdiv(pixels, part_pixels)
        parts = torch.empty((count, weight.numel()), dtype=torch.float32, device=x.device)
        bias_parts = torch.empty((count, outputs), dtype=torch.float32, device=x.device)
        blocks = triton.cdiv(channels, constants["CHANNELS"]) * triton.cdiv(outputs, constants["OUTPUTS"])
        weight_part[(9, count, blocks)](
            grad_y,
            y,
            x,
            parts,
            bias_parts,
            pixels,
            part_pixels,
            channels,
            outputs,
            a.negative_slope,
            **constants,
        )
        for sums, made in ((parts, a.grad_weight), (bias_parts, a.grad_bias)):
            if made.numel():
                into = _last(made) if made.dim() == 4 else made
                grid, tiles = summing(sums)
                channel_sums[grid](sums, into, *sums.shape, **tiles)
                _filled(made, into)
