"""Run by test_adain_act_triton.py with TRITON_INTERPRET=1: the Triton body on CPU tensors, errors as JSON.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import itertools
import json

import torch
from dgnet_fast.kernels import adain_act as kernels

from benchmarks.cases import AdainActCase, adain_act_inputs
from dgnet_fast.ops import adain_act, adain_act_reference

SHAPES = [(2, 5, 7, 3), (1, 1, 1, 9), (1, 40, 5, 5), (1, 3, 40, 30)]


def results(function, inputs, slope, grad_y, dtype=None):
    leaves = [t if t is None else t.to(dtype or t.dtype).clone().requires_grad_() for t in inputs]
    y = function(*leaves, negative_slope=slope)
    given = [leaf for leaf in leaves if leaf is not None]
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, given, grad_y.to(y.dtype)))]


def worst(got, exact, truncated=False):
    """Largest error of each result relative to its largest value, beyond what a truncation of it explains."""
    errors = []
    for index, (g, e) in enumerate(zip(got, exact, strict=True)):
        error = (g - e).abs()
        if truncated and index < 2:  # y and grad_x; the gradients of scale and shift are float32
            error = (error - e.abs() * 2**-7).clamp(min=0)
        errors.append((error.max() / (1 + e.abs().max())).item())
    return errors


def main() -> None:
    kernels.PLANE_BLOCK = kernels.PIECE = 256  # so that a plane of 1200 pixels takes the looped branch
    rows = []
    for shape, full, channels_last in itertools.product(SHAPES, (True, False), (True, False)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if dtype != torch.float32 and shape != SHAPES[0]:
                continue
            slope = 0.2 if full else None
            case = AdainActCase("interpreted", shape, full, slope, full)
            inputs = adain_act_inputs(case, dtype=dtype, channels_last=channels_last)
            x, scale, shift, _ = (None if t is None else t.double() for t in inputs)
            grad_y = torch.randn(shape) * (adain_act_reference(x, scale, shift).abs() > 1e-3)
            exact = results(adain_act_reference, inputs, slope, grad_y.to(dtype), torch.float64)
            rows.append(
                {
                    "case": f"{shape} {'adain+act+residual' if full else 'plain'} "
                    f"{'channels_last' if channels_last else 'nchw'} {dtype}",
                    "dtype": str(dtype),
                    "triton": worst(
                        results(adain_act, inputs, slope, grad_y), exact, dtype == torch.bfloat16
                    ),
                    "pytorch": worst(results(adain_act_reference, inputs, slope, grad_y), exact),
                }
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
