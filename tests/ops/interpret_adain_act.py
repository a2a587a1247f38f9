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

#: Shape and padding: once with every line mirrored on both sides, once in the looped branch, once plain.
SHAPES = [
    ((2, 5, 7, 3), 0),
    ((1, 1, 1, 9), 0),
    ((1, 33, 5, 6), 1),
    ((1, 1, 22, 21), 6),
    ((2, 2, 5, 4), 3),
]


def results(function, inputs, slope, padding, grad_y, dtype=None):
    leaves = [t if t is None else t.to(dtype or t.dtype).detach().clone().requires_grad_() for t in inputs]
    given = [leaf for leaf in leaves if leaf is not None]
    if leaves[3] is not None:  # the interior of a wider buffer, as a padded result's is
        leaves[3] = torch.nn.functional.pad(leaves[3], (2, 1, 1, 3))[:, :, 1:-3, 2:-1]
    y = function(*leaves, negative_slope=slope, padding=padding)
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, given, grad_y.to(y.dtype)))]


def worst(got, exact, truncated=False):
    """Largest error of each result relative to its largest value, beyond what a truncation of it explains."""
    errors = []
    for g, e in zip(got, exact, strict=True):
        error = (g - e).abs()
        if truncated and g.dim() == 4:  # the gradients of scale and shift are float32
            error = (error - e.abs() * 2**-7).clamp(min=0)
        errors.append((error.max() / (1 + e.abs().max())).item())
    return errors


def main() -> None:
    kernels.PLANE_BLOCK = kernels.PIECE = 256  # so that a plane of 462 pixels takes the looped branch
    kernels.MAPPED_PIECE = 64
    rows = []
    for (shape, padding), full, channels_last in itertools.product(SHAPES, (True, False), (True, False)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if dtype != torch.float32 and (shape != (2, 2, 5, 4) or not full):
                continue
            slope = 0.2 if full else None
            case = AdainActCase("interpreted", shape, full, slope, full)
            inputs = adain_act_inputs(case, dtype=dtype, channels_last=channels_last)
            x, scale, shift, _ = (None if t is None else t.double() for t in inputs)
            kept = adain_act_reference(x, scale, shift, padding=padding).abs() > 1e-3
            grad_y = torch.randn(kept.shape) * kept
            exact = results(adain_act_reference, inputs, slope, padding, grad_y.to(dtype), torch.float64)
            rows.append(
                {
                    "case": f"{shape} padding {padding} {'adain+act+residual' if full else 'plain'} "
                    f"{'channels_last' if channels_last else 'nchw'} {dtype}",
                    "dtype": str(dtype),
                    "triton": worst(
                        results(adain_act, inputs, slope, padding, grad_y), exact, dtype == torch.bfloat16
                    ),
                    "pytorch": worst(results(adain_act_reference, inputs, slope, padding, grad_y), exact),
                }
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
