"""Run by test_loss_terms_triton.py with TRITON_INTERPRET=1: Triton bodies on CPU tensors, errors as JSON.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import json

import torch
from dgnet_fast.kernels import loss_adversarial as adversarial
from dgnet_fast.kernels import loss_identity as identity

from dgnet_fast.ops import (
    loss_adversarial,
    loss_adversarial_reference,
    loss_identity,
    loss_identity_reference,
)
from tests.ops import test_loss_adversarial as maps_case
from tests.ops import test_loss_identity as terms_case

DOUBLE = torch.float64


def error(got, exact):
    return (got.double() - exact).abs().max().item() / max(1e-3, exact.abs().max().item())


def row(got, exact, inputs):
    """Errors of the result and of each gradient relative to the largest value; the gradients by dtype."""
    (value, gradients), (wanted, wanted_gradients) = got, exact
    errors = {}
    for g, w, x in zip(gradients, wanted_gradients, inputs, strict=True):
        errors[str(x.dtype)] = max(errors.get(str(x.dtype), 0), error(g, w))
    return {"value": error(value, wanted), "gradients": errors}


def main() -> None:
    identity.COLUMNS = 16  # rows in several pieces
    adversarial.BLOCK, adversarial.PIECE = 64, 32
    logits, targets = terms_case.draw_terms()
    given = (logits, targets)
    rows = [
        row(
            terms_case.outcome(loss_identity, *given),
            terms_case.outcome(loss_identity_reference, *given, DOUBLE),
            logits,
        )
    ]
    for kind in maps_case.KINDS:
        maps = maps_case.draw_maps() + maps_case.draw_maps()[:3]
        real, wide = [*maps_case.REAL, False, False, True], [x.double() for x in maps]
        got = maps_case.outcome(loss_adversarial, maps, real, kind=kind, weight=2.0)
        rows.append(
            row(got, maps_case.outcome(loss_adversarial_reference, wide, real, kind=kind, weight=2.0), maps)
        )
    outside = loss_identity([torch.zeros(2, 3)], [torch.tensor([[1], [3]])])  # label 3 of 3
    leaf = logits[2].clone().requires_grad_()  # the only one that has a gradient
    (alone,) = torch.autograd.grad(loss_identity([*logits[:2], leaf, *logits[3:]], targets).sum(), leaf)
    (wanted,) = torch.autograd.grad(loss_identity_reference([leaf], targets[2:3]).sum(), leaf)
    far = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = loss_adversarial([far], [True], kind="nsgan")
    print(
        json.dumps(
            {
                "rows": rows,
                "outside": [outside[0, 0].item(), outside[0, 1].isnan().item()],
                "alone": error(alone, wanted.double()),
                "far": [loss.item(), *torch.autograd.grad(loss, far)[0][0].tolist()],
            }
        )
    )


if __name__ == "__main__":
    main()
