"""The bodies of `adain_act` other than the reference, as the op calls them: cpp, cuda, triton.

Each is a namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions
(`ops/adain_act.py`). They check nothing: the op hands over tensors that are dense in one memory format, and
scale and shift as contiguous float32. Only the residual may be the interior of a padded buffer, read by its
strides: stride 1 along W in NCHW; 1 along C and C along W in channels_last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast import _C
from dgnet_fast.ops.arguments import new_statistics
from dgnet_fast.ops.launch import address, device_and_stream, is_channels_last, layout
from dgnet_fast.ops.padding import empty_padded

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]
Optional = Tensor | None


def _forward(launch, x, scale, shift, residual, negative_slope, eps, padding, *where) -> Three:
    """Allocates the results and calls a `_C.adain_act_forward…`; `where` is what CUDA needs besides."""
    y, (mean, rstd) = empty_padded(x, padding), new_statistics(x, *x.shape[:2])
    strides = (0, 0, 0) if residual is None else residual.stride()[:3]
    launch(
        layout(x, padding), *map(address, (x, scale, shift, residual)), strides,
        *map(address, (y, mean, rstd)), negative_slope, eps, *where,
    )  # fmt: skip
    return y, mean, rstd


def _backward(
    launch, grad_y, x, scale, shift, mean, rstd, negative_slope, padding, needs_residual, *where
) -> Four:
    """As `_forward`, for a `_C.adain_act_backward…`."""
    grad_x, (grad_scale, grad_shift) = torch.empty_like(x), new_statistics(x, *x.shape[:2])
    folds = padding > 0 and needs_residual
    grad_residual = torch.empty_like(x) if folds else x.new_empty(0)
    tensors = (grad_y, x, scale, shift, mean, rstd, grad_x, grad_scale, grad_shift)
    given = grad_residual if folds else None
    launch(layout(x, padding), *map(address, (*tensors, given)), negative_slope, *where)
    return grad_x, grad_scale, grad_shift, grad_residual


class cpp:  # noqa: N801
    """C++ with OpenMP, for CPU tensors: csrc/adain_act.cpp."""

    @staticmethod
    def forward(
        x: Tensor,
        scale: Optional,
        shift: Optional,
        residual: Optional,
        negative_slope: float,
        eps: float,
        padding: int,
    ) -> Three:
        return _forward(_C.adain_act_forward, x, scale, shift, residual, negative_slope, eps, padding)

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        scale: Optional,
        shift: Optional,
        mean: Tensor,
        rstd: Tensor,
        negative_slope: float,
        padding: int,
        needs_residual: bool,
    ) -> Four:
        given = (grad_y, x, scale, shift, mean, rstd, negative_slope, padding, needs_residual)
        return _backward(_C.adain_act_backward, *given)


class cuda:  # noqa: N801
    """CUDA C++, for CUDA tensors: csrc/adain_act.cu. Launches on the current stream of x's device.

    Bytes from and to memory, with n bytes in x and a residual r (0 or n): the minimum, x and residual in and y
    out, is 2n + r forward, and 3n backward (x, grad_y, grad_x). NCHW moves the minimum; channels_last reads x,
    and in the backward grad_y, once more: 3n + r and 5n where they do not stay in the L2 cache. Padding makes
    y and grad_y larger by its border, and grad_residual adds n where it is asked for.

    The workspace is freed in the stream's order, so it may go out of scope before the kernels have run.
    """

    @staticmethod
    def forward(
        x: Tensor,
        scale: Optional,
        shift: Optional,
        residual: Optional,
        negative_slope: float,
        eps: float,
        padding: int,
    ) -> Three:
        given = (x, scale, shift, residual, negative_slope, eps, padding)
        workspace = cuda._workspace(x, padding)
        return _forward(_C.adain_act_forward_cuda, *given, address(workspace), *device_and_stream(x))

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        scale: Optional,
        shift: Optional,
        mean: Tensor,
        rstd: Tensor,
        negative_slope: float,
        padding: int,
        needs_residual: bool,
    ) -> Four:
        given = (grad_y, x, scale, shift, mean, rstd, negative_slope, padding, needs_residual)
        workspace = cuda._workspace(x, padding)
        return _backward(_C.adain_act_backward_cuda, *given, address(workspace), *device_and_stream(x))

    @staticmethod
    def _workspace(x: Tensor, padding: int) -> Tensor:
        return torch.empty(_C.adain_act_workspace(layout(x, padding)), dtype=torch.float32, device=x.device)


class triton:  # noqa: N801
    """Triton, for CUDA tensors, and for CPU tensors under its interpreter: kernels/adain_act.py."""

    @staticmethod
    def forward(
        x: Tensor,
        scale: Optional,
        shift: Optional,
        residual: Optional,
        negative_slope: float,
        eps: float,
        padding: int,
    ) -> Three:
        from dgnet_fast.kernels import adain_act as kernels  # imports triton: only where it serves

        given = (x, scale, shift, residual, negative_slope, eps, padding)
        with torch.cuda.device_of(x):
            return kernels.forward(*given, is_channels_last(x))

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        scale: Optional,
        shift: Optional,
        mean: Tensor,
        rstd: Tensor,
        negative_slope: float,
        padding: int,
        needs_residual: bool,
    ) -> Four:
        from dgnet_fast.kernels import adain_act as kernels

        given = (grad_y, x, scale, shift, mean, rstd, negative_slope, padding, needs_residual)
        with torch.cuda.device_of(x):
            return kernels.backward(*given, is_channels_last(x))
