"""The body of `batch_norm_act` other than the reference, as the op calls it: cpp.

A namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions (`ops/batch_norm_act.py`). It
checks nothing: the op hands over tensors that are dense in one memory format, and weight and bias as contiguous
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast import _C
from dgnet_fast.ops.arguments import new_statistics
from dgnet_fast.ops.launch import address, layout

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


class cpp:  # noqa: N801
    """C++ with OpenMP, for CPU tensors: csrc/batch_norm_act.cpp."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
    ) -> Three:
        y, (mean, var) = torch.empty_like(x), new_statistics(x, groups, x.shape[1])
        tensors = (x, weight, bias, residual, y, mean, var)
        _C.batch_norm_act_forward(layout(x, 0), groups, *map(address, tensors), relu, eps)
        return y, mean, var

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
        grad_x, (grad_weight, grad_bias) = torch.empty_like(x), new_statistics(x, x.shape[1])
        grad_residual = torch.empty_like(x) if needs_residual else None
        tensors = (grad_y, y, x, weight, mean, var, grad_x, grad_weight, grad_bias, grad_residual)
        _C.batch_norm_act_backward(layout(x, 0), groups, *map(address, tensors), relu, eps)
        return grad_x, grad_weight, grad_bias, x.new_empty(0) if grad_residual is None else grad_residual
