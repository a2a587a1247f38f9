"""Run by test_layer_norm_act_triton.py with TRITON_INTERPRET=1: the Triton body on CPU tensors, errors as JSON.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import itertools
import json

import torch
from dgnet_fast.kernels import layer_norm_act as kernels

from dgnet_fast.ops import layer_norm_act, layer_norm_act_reference
from tests.ops.interpret_adain_act import worst

#: Shape, padding, offset of x, activation's slope and dtypes.
CASES = [
    ((2, 3, 7, 8), 2, 1.0, 0.2, (torch.float32, torch.bfloat16)),
    # Every line mirrored on both sides, and a mean far above the deviation.
    ((1, 3, 5, 4), 3, 30.0, None, (torch.float32, torch.float16)),
    ((2, 33, 3, 5), 0, 1.0, 0.2, (torch.float32,)),
    ((1, 1, 30, 20), 1, 1.0, 0.2, (torch.float32,)),
    ((1, 1, 1, 2), 0, 1.0, 0.2, (torch.float32,)),
]


def results(function, x, gamma, beta, slope, padding, grad_y, dtype=None):
    leaves = [t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in (x, gamma, beta)]
    y = function(*leaves, negative_slope=slope, padding=padding)
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, leaves, grad_y.to(y.dtype)))]


def main() -> None:
    # Small, so that samples fall into several slices and sums are merged in several steps.
    kernels.TILE, kernels.SLICE_ELEMENTS, kernels.MERGE = 256, 256, 2
    rows = []
    for (shape, padding, offset, slope, dtypes), channels_last in itertools.product(CASES, (False, True)):
        order = torch.channels_last if channels_last else torch.contiguous_format
        generator = torch.Generator().manual_seed(0)
        for dtype in dtypes:
            x = torch.randn(shape, generator=generator) * 2 + offset
            x = x.to(dtype).contiguous(memory_format=order)
            gamma = torch.rand(shape[1], generator=generator)
            beta = torch.randn(shape[1], generator=generator)
            wide = (t.double() for t in (x, gamma, beta))
            kept = layer_norm_act_reference(*wide, padding=padding).abs() > 1e-3
            grad_y = (torch.randn(kept.shape, generator=generator) * kept).to(dtype)
            given = (x, gamma, beta, slope, padding, grad_y)
            exact = results(layer_norm_act_reference, *given, torch.float64)
            truncated = dtype == torch.bfloat16
            rows.append(
                {
                    "case": f"{shape} padding {padding} {order} {dtype}",
                    "dtype": str(dtype),
                    "offset": offset,
                    "triton": worst(results(layer_norm_act, *given), exact, truncated),
                    "pytorch": worst(results(layer_norm_act_reference, *given), exact),
                }
            )
    for (padding, dtype), channels_last in itertools.product(
        ((0, torch.float32), (2, torch.float32), (1, torch.bfloat16)), (False, True)
    ):
        if dtype == torch.bfloat16 and not channels_last:
            continue  # joined first, with the bias, which rounds once more
        order = torch.channels_last if channels_last else torch.contiguous_format
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 12, 3, 5, generator=generator).to(dtype).contiguous(memory_format=order)
        gamma, beta, bias = (torch.randn(3, generator=generator) for _ in range(3))
        how = {"negative_slope": 0.2, "padding": padding, "phases": True}
        kept = layer_norm_act_reference(*(t.double() for t in (x, gamma, beta, bias)), **how).abs() > 1e-2
        grad_y = (torch.randn(kept.shape, generator=generator) * kept).to(dtype)
        found = []
        for function, wide in (
            (layer_norm_act, None),
            (layer_norm_act_reference, None),
            (layer_norm_act_reference, torch.float64),
        ):
            leaves = [t.detach().to(wide or t.dtype).requires_grad_() for t in (x, gamma, beta, bias)]
            y = function(*leaves, **how)
            grads = torch.autograd.grad(y, leaves[:3], grad_y.to(y.dtype))
            found.append([y.detach().double(), *(g.double() for g in grads)])
        ours, pytorch, exact = found
        rows.append(
            {
                "case": f"phases, padding {padding} {order} {dtype}",
                "dtype": str(dtype),
                "offset": 1.0,
                "triton": worst(ours, exact, dtype == torch.bfloat16),
                "pytorch": worst(pytorch, exact),
            }
        )
    # A constant sample has no deviation: its gradient through it is 0.
    x = torch.full((1, 2, 3, 4), 2.0).requires_grad_()
    y = layer_norm_act(x, torch.ones(2), torch.zeros(2), negative_slope=0.2)
    (grad,) = torch.autograd.grad(y.sum(), x)
    print(json.dumps({"rows": rows, "constant": [y.abs().max().item(), grad.abs().max().item()]}))


if __name__ == "__main__":
    main()
