"""The body of `conv3x3` other than the reference, as the op calls it: cpp.

A namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions (`ops/conv3x3.py`). It checks nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast import _C
from dgnet_fast.ops.launch import address


class cpp:  # noqa: N801
    """C++ with OpenMP, for float32 CPU tensors in channels_last order: csrc/conv3x3.cpp.

    Works on so many patches at a time that their matrices stay in the cache; memory sees x, y, and the 36 matrices of
    the taps, 4 times the size of the weight.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        # as a matrix: PyTorch transposes 256×256 taps 1.7 times as fast as in four dimensions (one core, AMD EPYC, 2.13)
        out, channels = weight.shape[:2]
        taps = _matrix(weight).t().contiguous().view(3, 3, channels, out)
        bias = None if bias is None else bias.contiguous()
        return _convolve(x, taps, bias, padding, flipped=False)

    @staticmethod
    def backward(
        grad_y: Tensor, x: Tensor, weight: Tensor, padding: int, needed: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_x = grad_weight = grad_bias = None
        if needed[0]:  # the convolution of grad_y with the taps turned by 180°, over the full border
            taps = weight.permute(2, 3, 0, 1).contiguous()
            grad_x = _convolve(grad_y, taps, None, 2 - padding, flipped=True)
        if needed[1]:
            out, channels = weight.shape[:2]
            grad_taps = x.new_empty(3, 3, channels, out)
            sizes = (x.shape[0], channels, out, *x.shape[2:], padding)
            _C.conv3x3_taps_gradient(sizes, *map(address, (x, grad_y, grad_taps)))
            grad_weight = torch.empty_like(weight)
            if grad_weight.is_contiguous(memory_format=torch.channels_last):
                _matrix(grad_weight).copy_(grad_taps.view(-1, out).t())
            else:
                grad_weight.copy_(grad_taps.permute(3, 2, 0, 1))
        if needed[2]:
            grad_bias = grad_y.sum(dim=(0, 2, 3))
        return tuple(x.new_empty(0) if g is None else g for g in (grad_x, grad_weight, grad_bias))


def _matrix(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) → (O, 9·C), taps first; a view where the weight is in channels_last order."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _convolve(x: Tensor, taps: Tensor, bias: Tensor | None, padding: int, *, flipped: bool) -> Tensor:
    batch, channels, height, width = x.shape
    # not a permuted view: PyTorch refuses to change those in place behind an op
    shape = (batch, taps.shape[3], height + 2 * padding - 2, width + 2 * padding - 2)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    sizes = (batch, channels, taps.shape[3], height, width, padding)
    _C.conv3x3(sizes, address(x), address(taps), flipped, address(bias), address(y))
    return y
