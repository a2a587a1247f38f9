"""The bodies of `batch_norm_act` other than the reference, as the op calls them: cpp, cuda, triton.

Each is a namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions
(`ops/batch_norm_act.py`). They check nothing: the op hands over tensors that are dense in one memory format,
and weight and bias as contiguous float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast import _C
from dgnet_fast.ops.arguments import new_statistics
from dgnet_fast.ops.launch import address, device_and_stream, is_channels_last, layout

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _forward(launch, x, weight, bias, residual, groups, relu, eps, *where) -> Three:
    """Allocates the results and calls a `_C.batch_norm_act_forward…`; `where` is what CUDA needs besides."""
    y, (mean, var) = torch.empty_like(x), new_statistics(x, groups, x.shape[1])
    tensors = (x, weight, bias, residual, y, mean, var)
    launch(layout(x, 0), groups, *map(address, tensors), relu, eps, *where)
    return y, mean, var


def _backward(launch, grad_y, y, x, weight, mean, var, groups, relu, eps, needs_residual, *where) -> Four:
    """As `_forward`, for a `_C.batch_norm_act_backward…`."""
    grad_x, (grad_weight, grad_bias) = torch.empty_like(x), new_statistics(x, x.shape[1])
    grad_residual = torch.empty_like(x) if needs_residual else None
    tensors = (grad_y, y, x, weight, mean, var, grad_x, grad_weight, grad_bias, grad_residual)
    launch(layout(x, 0), groups, *map(address, tensors), relu, eps, *where)
    return grad_x, grad_weight, grad_bias, x.new_empty(0) if grad_residual is None else grad_residual


class cpp:  # noqa: N801
    """C++ with OpenMP, for CPU tensors: csrc/batch_norm_act.cpp."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
    ) -> Three:
        return _forward(_C.batch_norm_act_forward, x, weight, bias, residual, groups, relu, eps)

    @staticmethod
    def backward(
        grad_y: Tensor,
        y: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        var: Tensor,
        groups: int,
        relu: bool,
        eps: float,
        needs_residual: bool,
    ) -> Four:
        given = (grad_y, y, x, weight, mean, var, groups, relu, eps, needs_residual)
        return _backward(_C.batch_norm_act_backward, *given)


class cuda:  # noqa: N801
    """CUDA C++, for CUDA tensors: csrc/batch_norm_act.cu. Launches on the current stream of x's device.

    Bytes from and to memory are those of kernels/batch_norm_act.py. The workspace is freed in the stream's order,
    so it may go out of scope before the kernels have run.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
    ) -> Three:
        given = (x, weight, bias, residual, groups, relu, eps)
        workspace = cuda._workspace(x, groups)
        return _forward(_C.batch_norm_act_forward_cuda, *given, address(workspace), *device_and_stream(x))

    @staticmethod
    def backward(
        grad_y: Tensor,
        y: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        var: Tensor,
        groups: int,
        relu: bool,
        eps: float,
        needs_residual: bool,
    ) -> Four:
        given = (grad_y, y, x, weight, mean, var, groups, relu, eps, needs_residual)
        workspace = cuda._workspace(x, groups)
        return _backward(_C.batch_norm_act_backward_cuda, *given, address(workspace), *device_and_stream(x))

    @staticmethod
    def _workspace(x: Tensor, groups: int) -> Tensor:
        size = _C.batch_norm_act_workspace(layout(x, 0), groups)
        return torch.empty(size, dtype=torch.float32, device=x.device)


class triton:  # noqa: N801
    """Triton, for CUDA tensors, and for CPU tensors under its interpreter: kernels/batch_norm_act.py."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
    ) -> Three:
        from dgnet_fast.kernels import batch_norm_act as kernels  # imports triton: only where it serves

        with torch.cuda.device_of(x):
            return kernels.forward(x, weight, bias, residual, groups, relu, eps, is_channels_last(x))

    @staticmethod
    def backward(
        grad_y: Tensor,
        y: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        var: Tensor,
        groups: int,
        relu: bool,
        eps: float,
        needs_residual: bool,
    ) -> Four:
        from dgnet_fast.kernels import batch_norm_act as kernels

        given = (grad_y, y, x, weight, mean, var, groups, relu, eps, needs_residual)
        with torch.cuda.device_of(x):
            *grads, grad_residual = kernels.backward(*given, is_channels_last(x))
        return *grads, x.new_empty(0) if grad_residual is None else grad_residual
