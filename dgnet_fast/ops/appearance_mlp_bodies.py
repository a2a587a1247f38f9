"""The bodies of `appearance_mlp` other than the reference, as the op calls them: aten, triton.

Each is a namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions
(`ops/appearance_mlp.py`). They check nothing: the op hands over contiguous tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast.ops.appearance_mlp import reference

Three = tuple[Tensor, Tensor, Tensor]


def _wide(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.float() for tensor in tensors]


class aten:  # noqa: N801
    """For CPU tensors: PyTorch's own float32 products whatever the dtype; no C++ of ours would beat them.

    A CPU without bfloat16 products emulates them: forward and backward of 48 bfloat16 codes took 58 ms this
    way and 442 ms in bfloat16 under torch.compile (one thread, AVX2). In float32 PyTorch's batched products
    run at 44 GFLOP/s a thread, which leaves no room to gain; float32 weights are read as they are.
    """

    @staticmethod
    def forward(code: Tensor, weights: list[Tensor], biases: list[Tensor], negative_slope: float) -> Three:
        wide = reference.forward(code.float(), _wide(weights), _wide(biases), negative_slope)
        parameters, *hidden = wide
        return parameters, *(h.to(code.dtype) for h in hidden)

    @staticmethod
    def backward(
        grad: Tensor,
        code: Tensor,
        hidden: list[Tensor],
        weights: list[Tensor],
        negative_slope: float,
        needs_code: bool,
        needs_weights: bool,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        grad_code, *gradients = reference.backward(
            grad, code.float(), _wide(hidden), _wide(weights), negative_slope, needs_code, needs_weights
        )
        grad_weights, grad_biases = ([g.to(weights[0].dtype) for g in group] for group in gradients)
        return grad_code.to(code.dtype), grad_weights, grad_biases


class triton:  # noqa: N801
    """Triton, for CUDA tensors, and for CPU tensors under its interpreter: kernels/appearance_mlp.py."""

    @staticmethod
    def forward(code: Tensor, weights: list[Tensor], biases: list[Tensor], negative_slope: float) -> Three:
        from dgnet_fast.kernels import appearance_mlp as kernels  # imports triton: only where it serves

        with torch.cuda.device_of(code):
            return kernels.forward(code, weights, biases, negative_slope)

    @staticmethod
    def backward(
        grad: Tensor,
        code: Tensor,
        hidden: list[Tensor],
        weights: list[Tensor],
        negative_slope: float,
        needs_code: bool,
        needs_weights: bool,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        from dgnet_fast.kernels import appearance_mlp as kernels

        with torch.cuda.device_of(code):
            return kernels.backward(grad, code, hidden, weights, negative_slope, needs_code, needs_weights)
