"""Run by test_batch_norm_act_triton.py with TRITON_INTERPRET=1: the Triton body on CPU tensors, errors as JSON.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import json
from functools import partial

import torch
from dgnet_fast.kernels import batch_norm_act as kernels

from dgnet_fast.ops import batch_norm_act, batch_norm_act_reference
from dgnet_fast.ops.batch_norm_act import batch_norm_act_for_two
from tests.ops.interpret_adain_act import worst

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
WITH, WITHOUT = ((4, 2, 9, 8), 2, True), ((2, 19, 3, 2), 1, False)
RELU_ALONE = ((4, 3, 5, 4), 2, None)
#: Shape, groups, whether there are a residual and a ReLU (None: a ReLU alone); order and dtype.
CASES = [
    (*WITH, NCHW, torch.float32),
    (*WITH, CHANNELS_LAST, torch.float32),
    (*WITH, NCHW, torch.float16),
    (*WITH, CHANNELS_LAST, torch.bfloat16),
    (*WITHOUT, NCHW, torch.float32),
    (*WITHOUT, CHANNELS_LAST, torch.float32),
    (*RELU_ALONE, NCHW, torch.float32),
    (*RELU_ALONE, CHANNELS_LAST, torch.bfloat16),
]
#: Sums merged by a kernel of their own, by the last kernel, and none, all in one kernel: `MOST_PARTS` and `WHOLE_PIXELS`.
FORMS = {"merged apart": (0, 0), "merged by the last": (64, 0), "whole": (0, 1000)}


def results(function, given, groups, relu, grad_y, dtype=None):
    """y, the gradients of everything given, mean and variance; with two readers each gets half of grad_y."""
    leaves = [t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in given]
    *ys, mean, var = function(*leaves, groups=groups, relu=relu)
    y = ys[0]
    grads = torch.autograd.grad(ys, leaves, [grad_y.to(y.dtype) / len(ys)] * len(ys))
    return [t.detach().double() for t in (y, *grads, mean, var)]


def main() -> None:
    # Small, so that units fall into several slices and sums are merged in several steps.
    kernels.TILE, kernels.SLICE_ELEMENTS, kernels.MERGE, kernels.COLUMNS = 64, 128, 32, 16
    kernels.MERGE_COLUMNS = 16
    rows = []
    for shape, groups, full, order, dtype in CASES:
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
        pictures = [draw(shape) * 2 + 1, draw(shape)][: 2 if full else 1]
        x, *residual = (t.to(dtype).contiguous(memory_format=order) for t in pictures)
        given = [x, draw(shape[1]), draw(shape[1]), *residual]
        # No gradient where rounding decides the ReLU.
        z = batch_norm_act_reference(*(t.double() for t in given), groups=groups, relu=False)[0]
        grad_y = (draw(shape) * (z.abs() > 1e-2)).to(dtype)
        options = (given, groups, full is not False, grad_y)
        exact = results(batch_norm_act_reference, *options, torch.float64)
        pytorch = worst(results(batch_norm_act_reference, *options), exact)
        for form, (kernels.MOST_PARTS, kernels.WHOLE_PIXELS) in FORMS.items():
            mine = results(batch_norm_act_for_two if full else batch_norm_act, *options)
            rows.append(
                {
                    "case": f"{shape} groups {groups} residual and relu {full} {order} {dtype} {form}",
                    "dtype": str(dtype),
                    "kernels": kernels.kernels_of(x, groups),
                    "triton": worst(mine, exact, dtype == torch.bfloat16),
                    "pytorch": pytorch,
                }
            )
    # A mean of ten thousand deviations, without and with an outlier where the statistics' pivot is.
    x = torch.randn(4, 1, 15, 9, generator=torch.Generator().manual_seed(1)) * 1e-2 + 100
    x[2, 0, 0, 0] = 0
    exact = x.double().unflatten(0, (2, -1))
    far = []
    for kernels.MOST_PARTS, kernels.WHOLE_PIXELS in FORMS.values():
        shown = x.expand(-1, 2, -1, -1).contiguous(memory_format=CHANNELS_LAST)
        mean, var = batch_norm_act(shown, torch.ones(2), torch.zeros(2), groups=2)[1:]
        far.append(
            {
                "mean": ((mean - exact.mean((1, 3, 4))).abs() / 100).max().item(),
                "var": (var / exact.var((1, 3, 4), correction=0) - 1).abs().max().item(),
            }
        )
    print(json.dumps({"rows": rows, "far": far}))


if __name__ == "__main__":
    main()
