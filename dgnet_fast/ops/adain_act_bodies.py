"""The bodies of `adain_act` other than the reference, as the op calls them: cpp, cuda, triton.

Each is a namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions
(`ops/adain_act.py`). They check nothing: the op hands over tensors that are dense in one memory format, and
scale and shift as contiguous float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast import _C
from dgnet_fast.ops.launch import address, device_and_stream, is_channels_last, layout

Three = tuple[Tensor, Tensor, Tensor]
Optional = Tensor | None


def _codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two uninitialised float32 (B, C); two allocations, because an op's outputs may not share memory."""
    shape = x.shape[:2]
    return (
        torch.empty(shape, dtype=torch.float32, device=x.device),
        torch.empty(shape, dtype=torch.float32, device=x.device),
    )


class cpp:  # noqa: N801
    """C++ with OpenMP, for CPU tensors: csrc/adain_act.cpp."""

    @staticmethod
    def forward(
        x: Tensor, scale: Optional, shift: Optional, residual: Optional, negative_slope: float, eps: float
    ) -> Three:
        y, (mean, rstd) = torch.empty_like(x), _codes(x)
        tensors = (x, scale, shift, residual, y, mean, rstd)
        _C.adain_act_forward(layout(x), *map(address, tensors), negative_slope, eps)
        return y, mean, rstd

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        scale: Optional,
        shift: Optional,
        mean: Tensor,
        rstd: Tensor,
        negative_slope: float,
    ) -> Three:
        grad_x, (grad_scale, grad_shift) = torch.empty_like(x), _codes(x)
        tensors = (grad_y, x, scale, shift, mean, rstd, grad_x, grad_scale, grad_shift)
        _C.adain_act_backward(layout(x), *map(address, tensors), negative_slope)
        return grad_x, grad_scale, grad_shift


class cuda:  # noqa: N801
    """CUDA C++, for CUDA tensors: csrc/adain_act.cu. Launches on the current stream of x's device."""

    @staticmethod
    def _launch(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """The workspace, to be kept until after the launch, and the launch's last three arguments."""
        workspace = torch.empty(_C.adain_act_workspace(layout(x)), dtype=torch.float32, device=x.device)
        return workspace, (address(workspace), *device_and_stream(x))

    @staticmethod
    def forward(
        x: Tensor, scale: Optional, shift: Optional, residual: Optional, negative_slope: float, eps: float
    ) -> Three:
        y, (mean, rstd) = torch.empty_like(x), _codes(x)
        tensors = (x, scale, shift, residual, y, mean, rstd)
        workspace, where = cuda._launch(x)
        _C.adain_act_forward_cuda(layout(x), *map(address, tensors), negative_slope, eps, *where)
        return y, mean, rstd

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        scale: Optional,
        shift: Optional,
        mean: Tensor,
        rstd: Tensor,
        negative_slope: float,
    ) -> Three:
        grad_x, (grad_scale, grad_shift) = torch.empty_like(x), _codes(x)
        tensors = (grad_y, x, scale, shift, mean, rstd, grad_x, grad_scale, grad_shift)
        workspace, where = cuda._launch(x)
        _C.adain_act_backward_cuda(layout(x), *map(address, tensors), negative_slope, *where)
        return grad_x, grad_scale, grad_shift


class triton:  # noqa: N801
    """Triton, for CUDA tensors, and for CPU tensors under its interpreter: kernels/adain_act.py."""

    @staticmethod
    def forward(
        x: Tensor, scale: Optional, shift: Optional, residual: Optional, negative_slope: float, eps: float
    ) -> Three:
        from dgnet_fast.kernels import adain_act as kernels  # imports triton: only where it serves

        with torch.cuda.device_of(x):
            return kernels.forward(x, scale, shift, residual, negative_slope, eps, is_channels_last(x))

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        scale: Optional,
        shift: Optional,
        mean: Tensor,
        rstd: Tensor,
        negative_slope: float,
    ) -> Three:
        from dgnet_fast.kernels import adain_act as kernels

        with torch.cuda.device_of(x):
            return kernels.backward(grad_y, x, scale, shift, mean, rstd, negative_slope, is_channels_last(x))
