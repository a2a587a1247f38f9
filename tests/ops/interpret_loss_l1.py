"""Run by test_loss_l1_triton.py with TRITON_INTERPRET=1: the Triton body on CPU tensors, against the reference.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import json

import torch
from dgnet_fast.kernels import loss_l1 as kernels

from dgnet_fast.ops import loss_l1, loss_l1_reference
from tests.ops.test_loss_l1 import MIXED, draw_pairs

EVERY = [*MIXED, *MIXED[:2]]


def outcome(function, predictions, targets, grad):
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in predictions]
    terms = function(leaves, targets)
    return terms.detach(), torch.autograd.grad(terms, leaves, grad.to(terms.dtype))


def main() -> None:
    kernels.CONSTANTS = {**kernels.CONSTANTS, "SLICE": 2, "STEP": 1}  # several slices, several steps
    kernels.SLICE_BLOCKS = 2
    predictions, targets = draw_pairs(EVERY)
    grad = torch.randn(len(predictions), 2, generator=torch.Generator().manual_seed(5))
    terms, gradients = outcome(loss_l1, predictions, targets, grad)
    exact, _ = outcome(loss_l1_reference, *([t.double() for t in ts] for ts in (predictions, targets)), grad)
    _, expected = outcome(loss_l1_reference, predictions, targets, grad)
    leaf = predictions[1].clone().requires_grad_()  # one of three has a gradient
    some = loss_l1([predictions[0], leaf, predictions[2]], targets[:3])
    (alone,) = torch.autograd.grad(some, leaf, grad[:3])
    print(
        json.dumps(
            {
                "terms": ((terms - exact).abs() / exact.clamp_min(1e-3)).max().item(),
                "gradients": [
                    (a.double() - b.double()).abs().max().item() / b.double().abs().max().item()
                    for a, b in zip(gradients, expected, strict=True)
                ],
                "strides": all(a.stride() == x.stride() for a, x in zip(gradients, predictions, strict=True)),
                "one": torch.equal(alone, gradients[1]),
            }
        )
    )


if __name__ == "__main__":
    main()
