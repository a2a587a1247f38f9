"""A 4×4 convolution of stride 2 as a 3×3 one, computed on a picture of half the size.

Four neighbouring pixels become four times the channels of one, and the 4×4 taps become 2×2. With a row and a column of
zeros these are 3×3 taps, which `conv3x3` takes with 9 multiplications where the plain form has 16.
64 to 128 channels at 256×128, forward and backward: 97 ms where PyTorch's convolution takes 170 in channels_last and 108
in NCHW (one thread of an AMD EPYC, torch 2.13). With few pixels for many taps it is no faster, and PyTorch's serves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.ops.conv3x3 import conv3x3, saves_products

KERNEL = 4
PIXELS_A_CHANNEL = 16
"""Of the result, for each channel of x: from here on the transform of the taps is small beside the rest."""


def halving_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.conv2d(x, weight, bias, stride=2)`` for a 4×4 kernel.

    Args:
        x: (B, C, H, W), padded already; weight: (O, C, 4, 4); bias: (O,) or None.

    Returns:
        (B, O, (H - 2) / 2, (W - 2) / 2), rounded down.

    On a CPU, where `conv3x3` would save multiplications and H and W are even, by that op, with its accuracy; all else, and
    compiled, is ``F.conv2d`` itself. Differentiable to any order by autograd. Raises as `F.conv2d` does.
    """
    if _serves(x, weight, bias):
        return conv3x3(_Folded.apply(x), _folded_taps(weight), bias)
    return F.conv2d(x, weight, bias, stride=2)


def _serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if torch.compiler.is_compiling() or weight.shape[2:] != (KERNEL, KERNEL) or x.ndim != 4:
        return False
    batch, channels, height, width = x.shape
    pixels = batch * (height // 2 - 1) * (width // 2 - 1)
    return (
        height % 2 == width % 2 == 0
        and min(height, width) >= KERNEL
        and pixels >= PIXELS_A_CHANNEL * channels
        and saves_products(x, weight, bias, 0)
    )


def _folded_taps(weight: Tensor) -> Tensor:
    """(O, C, 4, 4) → (O, 4·C, 3, 3), the last row and column zero; channels in `_Folded`'s order."""
    out, channels = weight.shape[:2]
    taps = weight.view(out, channels, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(out, 4 * channels, 2, 2)
    return F.pad(taps, (0, 1, 0, 1))


class _Folded(torch.autograd.Function):
    """(B, C, H, W) → (B, 4·C, H/2 + 1, W/2 + 1), both in channels_last: a pixel holds its upper and its lower two pixels,
    each as two times C channels; the last row and column, which meet the taps' zeros, are zero.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        folded = x.new_empty(batch, height // 2 + 1, width // 2 + 1, 2, 2 * channels)
        folded[:, -1], folded[:, :, -1] = 0, 0
        folded[:, :-1, :-1] = _by_pixel(x)
        return folded.flatten(3).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        batch, channels, height, width = grad.shape
        by_pixel = grad[:, :, :-1, :-1].permute(0, 2, 3, 1).unflatten(3, (2, -1))
        # rows of pairs side by side are rows of pixels
        rows = by_pixel.transpose(2, 3).reshape(batch, 2 * height - 2, 2 * width - 2, channels // 4)
        return rows.permute(0, 3, 1, 2)


def _by_pixel(x: Tensor) -> Tensor:
    """A view of x (B, C, H, W): (B, H/2, W/2, 2, 2·C)."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2 * channels)
    return rows.transpose(2, 3)
