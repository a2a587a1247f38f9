"""The body of `loss_adversarial` other than the reference, as the op calls it: triton.

A namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions (`ops/loss_adversarial.py`). It
checks nothing: the op hands over contiguous tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast.ops.loss_adversarial import DRIFT


class triton:  # noqa: N801
    """Triton, for CUDA tensors, and for CPU tensors under its interpreter: kernels/loss_adversarial.py.

    One launch a pass. Bytes: every score once forward, once more and its gradient once backward; D's six maps at
    batch 8 are 0.2 and 0.4 MB in bfloat16, so the launch is the cost: a few µs where the compiled reference takes a
    reduction for each map (predicted, not measured).
    """

    @staticmethod
    def forward(scores: list[Tensor], real: list[bool], kind: str, weight: float) -> Tensor:
        from dgnet_fast.kernels import loss_adversarial as kernels  # imports triton: only where it serves

        with torch.cuda.device_of(scores[0]):
            return kernels.forward(scores, real, kind, weight, DRIFT)

    @staticmethod
    def backward(
        grad: Tensor, scores: list[Tensor], real: list[bool], kind: str, weight: float, needed: list[bool]
    ) -> list[Tensor]:
        from dgnet_fast.kernels import loss_adversarial as kernels

        gradients = [
            torch.empty_like(x) if need else x.new_empty(0) for x, need in zip(scores, needed, strict=True)
        ]
        with torch.cuda.device_of(grad):
            kernels.backward(grad, scores, real, kind, weight, DRIFT, gradients)
        return gradients
