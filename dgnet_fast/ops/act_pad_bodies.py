"""The bodies of `act_pad` other than the reference, as the op calls them: cpp, triton.

Each is a namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions (`ops/act_pad.py`). They check
nothing: the op hands over tensors that are dense in one memory format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast import _C
from dgnet_fast.ops.launch import address, is_channels_last, layout
from dgnet_fast.ops.padding import empty_padded


class cpp:  # noqa: N801
    """C++ with OpenMP, for CPU tensors: csrc/act_pad.cpp."""

    @staticmethod
    def forward(x: Tensor, sides: Tensor | None, negative_slope: float, padding: int) -> Tensor:
        y = empty_padded(x, padding)
        _C.act_pad_forward(layout(x, padding), address(x), address(sides), address(y), negative_slope)
        return y

    @staticmethod
    def backward(grad_y: Tensor, sides: Tensor | None, negative_slope: float, padding: int) -> Tensor:
        grad_x = empty_padded(grad_y, -padding)
        where = (address(grad_y), address(sides), address(grad_x))
        _C.act_pad_backward(layout(grad_x, padding), *where, negative_slope)
        return grad_x


class triton:  # noqa: N801
    """Triton, for CUDA tensors, and for CPU tensors under its interpreter: kernels/act_pad.py."""

    @staticmethod
    def forward(x: Tensor, sides: Tensor | None, negative_slope: float, padding: int) -> Tensor:
        from dgnet_fast.kernels import act_pad as kernels  # imports triton: only where it serves

        with torch.cuda.device_of(x):
            return kernels.forward(x, sides, negative_slope, padding, is_channels_last(x))

    @staticmethod
    def backward(grad_y: Tensor, sides: Tensor | None, negative_slope: float, padding: int) -> Tensor:
        from dgnet_fast.kernels import act_pad as kernels

        with torch.cuda.device_of(grad_y):
            return kernels.backward(grad_y, sides, negative_slope, padding, is_channels_last(grad_y))
