"""The Triton body without a GPU: values under the interpreter, and compiled ahead for sm_80 and sm_90."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tests.ops.ahead import CAPABILITIES, assert_lean, record  # noqa: E402
from tests.ops.interpreted import interpreted  # noqa: E402


def test_values_under_the_interpreter():
    results = interpreted("interpret_loss_l1.py")
    assert results["terms"] < 1e-6
    # the interpreter truncates to bfloat16 where a GPU rounds; float32 and float16 are exact
    assert len(results["gradients"]) == 9 and max(results["gradients"]) < 2**-7
    assert results["gradients"][1] < 1e-7 and results["gradients"][5] < 1e-7
    assert results["strides"] and results["one"]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("dtype", "crossing"), [(torch.bfloat16, 1), (torch.float32, 0), (torch.float32, 2)], ids=str
)
def test_launches_compile_ahead_without_spills(monkeypatch, dtype, crossing, capability):
    """A step's pairs at batch 8: three of pictures, structure and appearance codes."""
    from dgnet_fast.kernels import loss_l1 as kernels

    launches = record(monkeypatch, kernels, ["forward_pairs", "backward_pairs"])

    def pair(elements, target_dtype, *sizes):
        return torch.empty(2, elements, dtype=dtype, device="meta"), torch.empty(
            2, elements, dtype=target_dtype, device="meta"
        ), *sizes  # fmt: skip

    sizes = (3, 32768) if crossing else (1, 1)
    pictures = pair(8 * 3 * 32768, torch.float32, *sizes, crossing)
    pairs = [pictures] * 3 + [pair(8 * 128 * 2048, dtype, 1, 1, 0), pair(8 * 8192, dtype, 1, 1, 0)]
    signs = [torch.empty(2 * x.shape[1] // 4, dtype=torch.uint8, device="meta") for x, *_ in pairs]
    means = kernels.forward(pairs, signs)
    gradients = [torch.empty_like(x) for x, *_ in pairs]
    gradients[-1] = torch.empty(0, dtype=dtype, device="meta")
    kernels.backward(means, signs, gradients)
    assert len(launches) == 2
    assert_lean(launches, capability, 128)
