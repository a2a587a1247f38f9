"""The body of `loss_identity` other than the reference, as the op calls it: triton.

A namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions (`ops/loss_identity.py`). It
checks nothing: the op hands over contiguous tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor


class triton:  # noqa: N801
    """Triton, for CUDA tensors, and for CPU tensors under its interpreter: kernels/loss_identity.py.

    One launch a pass. Bytes: logits and targets once forward, both again and the gradients once backward; a step's
    six terms (16 rows of 751, one with probabilities) are 0.2 and 0.3 MB in bfloat16, so the launch is the cost: a
    few µs where the compiled reference takes a kernel or two for each term (predicted, not measured).
    """

    @staticmethod
    def forward(logits: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
        from dgnet_fast.kernels import loss_identity as kernels  # imports triton: only where it serves

        with torch.cuda.device_of(logits[0]):
            return kernels.forward(logits, targets)

    @staticmethod
    def backward(
        grad: Tensor, kept: Tensor, logits: list[Tensor], targets: list[Tensor], needed: list[bool]
    ) -> list[Tensor]:
        from dgnet_fast.kernels import loss_identity as kernels

        gradients = [
            torch.empty_like(x) if need else x.new_empty(0) for x, need in zip(logits, needed, strict=True)
        ]
        with torch.cuda.device_of(grad):
            kernels.backward(grad, kept, logits, targets, gradients)
        return gradients
