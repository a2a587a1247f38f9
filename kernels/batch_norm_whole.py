"""`batch_norm_act`'s Triton body for small groups in channels_last: a program keeps some channels of a whole group in its
registers, so that every tensor is read once and forward is one kernel, backward two.
"""

from __future__ import annotations

import triton
import triton.language as tl
from dgnet_fast.kernels.batch_norm_parts import affine, grad_before_relu, pivot_of, values


@triton.jit
def _tile(pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of the program's tile, its mask, and of its channels: number, place in a group's statistics, mask."""
    group = tl.program_id(1).to(tl.int64)
    pixel = tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = channel < channels
    at = (group * pixels + pixel) * channels + channel
    return at, (pixel < pixels) & inside, channel, group * channels + channel, inside


@triton.jit
def forward_whole(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, mean_ptr, var_ptr, channels, pixels, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    at, mask, channel, code, inside = _tile(pixels, channels, ROWS, COLUMNS)
    x = values(x_ptr, at, mask)
    pivot = pivot_of(x_ptr, tl.program_id(1), channel, 1, channels, pixels, True)
    apart = tl.where(mask, x - pivot, 0.0)
    whole = tl.sum(apart, 0)[None, :] / pixels
    apart = tl.where(mask, apart - whole, 0.0)
    mean, var = pivot + whole, tl.sum(apart * apart, 0)[None, :] / pixels
    tl.store(mean_ptr + code, mean, inside)
    tl.store(var_ptr + code, var, inside)
    factor = tl.load(weight_ptr + channel, inside, other=0.0) / tl.sqrt(var + eps)
    z = (x - mean) * factor + tl.load(bias_ptr + channel, inside, other=0.0)
    if residual_ptr is not None:
        z += values(residual_ptr, at, mask)
    if RELU:
        z = tl.where(z <= 0, 0.0, z)  # NaN passes
    tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def backward_whole(
    grad_y_ptr, grad_again_ptr, y_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, grad_residual_ptr,
    grad_x_ptr, sums_ptr, groups, channels, pixels, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes grad_x and grad_residual, and leaves what `backward_merge` does."""
    at, mask, channel, code, inside = _tile(pixels, channels, ROWS, COLUMNS)
    mean = tl.load(mean_ptr + code, inside, other=0.0)
    factor, shift = affine(weight_ptr, bias_ptr, var_ptr, code, channel, inside, eps)
    centred = tl.where(mask, values(x_ptr, at, mask) - mean, 0.0)
    grad = grad_before_relu(grad_y_ptr, grad_again_ptr, y_ptr, bias_ptr, centred, factor, shift, at, mask)
    if grad_residual_ptr is not None:
        tl.store(grad_residual_ptr + at, grad.to(grad_residual_ptr.dtype.element_ty), mask)
    sums, products = tl.sum(grad, 0)[None, :], tl.sum(grad * centred, 0)[None, :]
    tl.store(sums_ptr + code, sums, inside)
    tl.store(sums_ptr + groups * channels + code, products, inside)
    rstd = 1.0 / tl.sqrt(tl.load(var_ptr + code, inside, other=0.0) + eps)
    grad_x = (grad - sums / pixels - centred * (products / pixels * rstd * rstd)) * factor
    tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask)


@triton.jit
def backward_groups(
    sums_ptr, var_ptr, grad_weight_ptr, grad_bias_ptr, groups, channels, eps, COLUMNS: tl.constexpr
):  # fmt: skip
    """Adds up the groups' gradients of weight and bias."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < channels
    grad_weight = tl.zeros([COLUMNS], tl.float32)
    grad_bias = tl.zeros([COLUMNS], tl.float32)
    for group in range(0, groups):
        code = group * channels + channel
        deviation = tl.sqrt(tl.load(var_ptr + code, inside, other=0.0) + eps)
        grad_weight += tl.load(sums_ptr + groups * channels + code, inside, other=0.0) / deviation
        grad_bias += tl.load(sums_ptr + code, inside, other=0.0)
    tl.store(grad_weight_ptr + channel, grad_weight, inside)
    tl.store(grad_bias_ptr + channel, grad_bias, inside)
