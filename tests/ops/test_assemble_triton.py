"""The kernel that makes batches without a GPU: values under the interpreter, and compiled ahead."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from dgnet_fast.data.augment import assemble, normalizing_constants  # noqa: E402
from tests.ops.ahead import CAPABILITIES, assert_lean, record  # noqa: E402
from tests.ops.interpreted import interpreted  # noqa: E402


def test_values_under_the_interpreter():
    rows = interpreted("interpret_assemble.py")
    assert len(rows) == 12
    for row in rows:
        assert row["apart"] <= (1 if "bfloat16" in row["case"] else 0), row


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_launches_compile_ahead_without_spills(monkeypatch, capability):
    from dgnet_fast.kernels import assemble as kernels

    launches = record(monkeypatch, kernels, ["assemble_pictures"])
    images = torch.empty((12936, 3, 256, 128), dtype=torch.uint8, device="meta")
    plan = torch.empty((4, 32), dtype=torch.int64, device="meta")
    for dtype in (torch.float32, torch.bfloat16):
        made = kernels.forward(images, *plan, 10, *normalizing_constants(), dtype)
        assert made.shape == (32, 3, 256, 128) and made.dtype == dtype
    assert len(launches) == 2
    for kernel in assert_lean(launches, capability, 64):
        # A product is not fused with the difference before it, so results are PyTorch's.
        assert "fma" not in kernel.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_on_the_device(dtype):
    images = torch.randint(256, (9, 3, 256, 128), dtype=torch.uint8)
    plan = torch.stack([torch.randint(high, (32,)) for high in (9, 2, 21, 21)])
    wanted = assemble(images, *plan, 10, dtype)
    assert torch.equal(assemble(images.cuda(), *plan.cuda(), 10, dtype).cpu(), wanted)
