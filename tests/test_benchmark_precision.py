"""benchmarks.precision: bf16 products as hardware makes them, and its table."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.precision import ProductsInFloat32, table


def test_products_are_sums_in_float32_rounded_once():
    x, weight = torch.randn(2, 8, 6, 5).bfloat16(), torch.randn(4, 8, 3, 3).bfloat16().requires_grad_()
    with ProductsInFloat32():
        y = F.conv2d(x, weight, padding=1)
        (gradient,) = torch.autograd.grad(y.sum(), weight)
    wide = weight.detach().float().requires_grad_()
    expected = F.conv2d(x.float(), wide, padding=1)
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), wide)[0].bfloat16())


def test_table_of_means_and_standard_errors():
    values = {"fp32": (80, 82), "bf16": (80, 84)}
    runs = [
        {"precision": precision, "scores": {"chance: mAP": 1.0, "DG-Net: mAP": float(value)}}
        for precision, pair in values.items()
        for value in pair
    ]
    assert table(runs)[2:] == [
        "| DG-Net: mAP | 81 ± 1.4 (80, 82) | 82 ± 2.8 (80, 84) | +1 | 0.4 |"
    ]  # 1 / √(2/2 + 8/2)
