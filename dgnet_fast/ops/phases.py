"""A picture (B, O, 2H, 2W) in four phases (B, 4·O, H, W), as `upsample_conv` computes it: channel (2·p + q)·O + o holds what
stands in rows of phase p and columns of phase q (0 even, 1 odd). Phases come before channels, so that in channels_last
memory a copy between the two moves rows of neighbours, and a picture's pixels in phases are its own in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast.ops.layouts import memory_format


def _phases(small: Tensor) -> Tensor:
    """(B, 4·O, H, W) → (B, O, H, 2, W, 2), a view."""
    return small.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2)


def joined(small: Tensor, bias: Tensor | None = None) -> Tensor:
    """The phases as one picture, plus the bias (O,) or None, in one pass and in the phases' memory order: `F.pixel_shuffle`
    on CUDA answers in NCHW, whatever it reads.
    """
    if torch.compiler.is_compiling():
        y = _phases(small).flatten(4, 5).flatten(2, 3).contiguous(memory_format=memory_format(small))
        return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)
    return _Joined.apply(small, bias)


def parted(y: Tensor, order: torch.memory_format) -> Tensor:
    """A picture in phases, a copy in the given memory order."""
    phases = y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 3, 5, 1, 2, 4)
    # first in the order of the result: `flatten` would make a copy in another one
    if order == torch.channels_last:
        return phases.permute(0, 4, 5, 1, 2, 3).flatten(3).permute(0, 3, 1, 2)
    return phases.flatten(1, 3)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(small: Tensor, bias: Tensor | None) -> Tensor:
        batch, channels, height, width = small.shape
        shape = (batch, channels // 4, 2 * height, 2 * width)
        order = memory_format(small)
        y = torch.empty(shape, dtype=small.dtype, device=small.device, memory_format=order)
        places = y.unflatten(3, (width, 2)).unflatten(2, (height, 2))
        if bias is None:
            places.copy_(_phases(small))
        else:
            torch.add(_phases(small), bias.to(y.dtype).view(-1, 1, 1, 1, 1), out=places)
        return y

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        small, bias = inputs
        ctx.order, ctx.dtype = memory_format(small), None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        to_small = parted(grad, ctx.order) if ctx.needs_input_grad[0] else None
        to_bias = grad.sum((0, 2, 3), dtype=ctx.dtype) if ctx.needs_input_grad[1] else None
        return to_small, to_bias
