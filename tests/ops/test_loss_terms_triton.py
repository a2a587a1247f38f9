"""Triton bodies of loss_identity and loss_adversarial without a GPU: under the interpreter, and compiled ahead."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")

from tests.ops.ahead import CAPABILITIES, assert_lean, launch, record  # noqa: E402
from tests.ops.interpreted import interpreted  # noqa: E402

#: One rounding; the interpreter truncates to bfloat16 where a GPU rounds.
ALLOWED = {"torch.float32": 1e-6, "torch.float16": 2**-10, "torch.bfloat16": 2**-7}


def test_values_under_the_interpreter():
    results = interpreted("interpret_loss_terms.py")
    assert len(results["rows"]) == 4
    for row in results["rows"]:
        assert row["value"] < 1e-6, row
        assert row["gradients"].keys() == ALLOWED.keys()
        for dtype, error in row["gradients"].items():
            assert error <= ALLOWED[dtype], (dtype, row)
    known, outside_is_nan = results["outside"]
    assert math.isclose(known, math.log(3), rel_tol=1e-6) and outside_is_nan
    assert results["alone"] < 1e-6
    assert results["far"] == pytest.approx([100, -0.5, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("dtype", "capability"),
    list(zip((torch.float32, torch.bfloat16), CAPABILITIES, strict=True)),
    ids=str,
)
def test_identity_compiles_ahead_without_spills(monkeypatch, dtype, capability):
    """A step's terms at batch 8 on Market-1501: x by both heads, the positives, the swaps, the student."""
    from dgnet_fast.kernels import loss_identity as kernels

    launches = record(monkeypatch, kernels, ["forward_terms", "backward_terms"])
    logits = [torch.empty(16, 751, dtype=dtype, device="meta") for _ in range(6)]
    targets = [torch.empty(2, 8, dtype=torch.int64, device="meta") for _ in range(5)]
    targets.insert(4, torch.empty(2, 8, 751, device="meta"))
    given = {"logits": logits, "targets": targets}
    a = launch("loss_identity", "forward", **given)
    launch("loss_identity", "backward", grad=a.terms, kept=a.kept, **given, needed=[True] * 6)
    assert len(launches) == 2
    assert_lean(launches, capability, 128)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.bfloat16, "lsgan"), (torch.float32, "nsgan"), (torch.bfloat16, "wgan")],
    ids=str,
)
def test_adversarial_compiles_ahead_without_spills(monkeypatch, dtype, kind, capability):
    """D's six maps at batch 8."""
    from dgnet_fast.kernels import loss_adversarial as kernels

    launches = record(monkeypatch, kernels, ["forward_maps", "backward_maps"])
    sizes = [(64, 32), (32, 16), (16, 8)] * 2
    maps = [torch.empty(2, 8, 1, *size, dtype=dtype, device="meta") for size in sizes]
    real = [False] * 3 + [True] * 3
    given = {"scores": maps, "real": real, "kind": kind, "weight": 1.0, "drift": 0.001}
    loss = launch("loss_adversarial", "forward", **given).loss
    launch("loss_adversarial", "backward", grad=loss, **given, needed=[True] * 6)
    assert len(launches) == 2
    assert_lean(launches, capability, 128)
