"""The bodies of `layer_norm_act` other than the reference, as the op calls them: cpp, cuda, triton.

Each is a namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions
(`ops/layer_norm_act.py`). They check nothing: the op hands over tensors that are dense in one memory format,
and gamma and beta as contiguous float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast import _C
from dgnet_fast.ops.arguments import new_statistics
from dgnet_fast.ops.launch import address, device_and_stream, is_channels_last, layout
from dgnet_fast.ops.padding import empty_padded

Three = tuple[Tensor, Tensor, Tensor]


def _forward(launch, x, gamma, beta, negative_slope, eps, padding, *where) -> Three:
    """Allocates the results and calls a `_C.layer_norm_act_forward…`; `where` is what CUDA needs besides."""
    y, (mean, rdenom) = empty_padded(x, padding), new_statistics(x, x.shape[0])
    tensors = (x, gamma, beta, y, mean, rdenom)
    launch(layout(x, padding), *map(address, tensors), negative_slope, eps, *where)
    return y, mean, rdenom


def _backward(launch, grad_y, x, gamma, beta, mean, rdenom, negative_slope, eps, padding, *where) -> Three:
    """As `_forward`, for a `_C.layer_norm_act_backward…`."""
    grad_x, (grad_gamma, grad_beta) = torch.empty_like(x), new_statistics(x, x.shape[1])
    tensors = (grad_y, x, gamma, beta, mean, rdenom, grad_x, grad_gamma, grad_beta)
    launch(layout(x, padding), *map(address, tensors), negative_slope, eps, *where)
    return grad_x, grad_gamma, grad_beta


class cpp:  # noqa: N801
    """C++ with OpenMP, for CPU tensors: csrc/layer_norm_act.cpp."""

    @staticmethod
    def forward(
        x: Tensor, gamma: Tensor, beta: Tensor, negative_slope: float, eps: float, padding: int
    ) -> Three:
        return _forward(_C.layer_norm_act_forward, x, gamma, beta, negative_slope, eps, padding)

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        rdenom: Tensor,
        negative_slope: float,
        eps: float,
        padding: int,
    ) -> Three:
        given = (grad_y, x, gamma, beta, mean, rdenom, negative_slope, eps, padding)
        return _backward(_C.layer_norm_act_backward, *given)


class cuda:  # noqa: N801
    """CUDA C++, for CUDA tensors: csrc/layer_norm_act.cu. Launches on the current stream of x's device.

    Bytes from and to memory, with n bytes in x: the minimum is 2n forward (x in, y out) and 3n backward (x and
    grad_y in, grad_x out). x is read twice forward, x and grad_y backward: 3n and 5n where a sample does not
    stay in the L2 cache between. Padding makes y and grad_y larger by its border.

    The workspace is freed in the stream's order, so it may go out of scope before the kernels have run.
    """

    @staticmethod
    def forward(
        x: Tensor, gamma: Tensor, beta: Tensor, negative_slope: float, eps: float, padding: int
    ) -> Three:
        given = (x, gamma, beta, negative_slope, eps, padding)
        workspace = cuda._workspace(x, padding)
        return _forward(_C.layer_norm_act_forward_cuda, *given, address(workspace), *device_and_stream(x))

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        rdenom: Tensor,
        negative_slope: float,
        eps: float,
        padding: int,
    ) -> Three:
        given = (grad_y, x, gamma, beta, mean, rdenom, negative_slope, eps, padding)
        workspace = cuda._workspace(x, padding)
        return _backward(_C.layer_norm_act_backward_cuda, *given, address(workspace), *device_and_stream(x))

    @staticmethod
    def _workspace(x: Tensor, padding: int) -> Tensor:
        size = _C.layer_norm_act_workspace(layout(x, padding))
        return torch.empty(size, dtype=torch.float32, device=x.device)


class triton:  # noqa: N801
    """Triton, for CUDA tensors, and for CPU tensors under its interpreter: kernels/layer_norm_act.py."""

    @staticmethod
    def forward(
        x: Tensor, gamma: Tensor, beta: Tensor, negative_slope: float, eps: float, padding: int
    ) -> Three:
        from dgnet_fast.kernels import layer_norm_act as kernels  # imports triton: only where it serves

        with torch.cuda.device_of(x):
            return kernels.forward(x, gamma, beta, negative_slope, eps, padding, is_channels_last(x))

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        rdenom: Tensor,
        negative_slope: float,
        eps: float,
        padding: int,
    ) -> Three:
        from dgnet_fast.kernels import layer_norm_act as kernels

        with torch.cuda.device_of(x):
            return kernels.backward(
                grad_y, x, gamma, beta, mean, rdenom, negative_slope, eps, padding, is_channels_last(x)
            )
