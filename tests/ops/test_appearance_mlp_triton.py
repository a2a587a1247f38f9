"""The Triton body without a GPU: values under the interpreter, and compiled ahead for sm_80 and sm_90."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.cases import (  # noqa: E402
    APPEARANCE_MLP,
    MLP_COUNT,
    MLP_WIDTHS,
    appearance_mlp_inputs,
)
from dgnet_fast.ops import appearance_mlp, appearance_mlp_reference  # noqa: E402
from tests.ops.ahead import CAPABILITIES, assert_lean, launch, record  # noqa: E402
from tests.ops.interpreted import interpreted  # noqa: E402
from tests.ops.test_appearance_mlp import arguments, errors, run  # noqa: E402


def test_values_under_the_interpreter():
    rows = interpreted("interpret_appearance_mlp.py")
    assert len(rows) == 5
    for row in rows:
        half = "float16" in row["case"]
        for mine, pytorch in zip(row["triton"], row["pytorch"], strict=True):
            assert mine <= 2 * pytorch + 1e-7 and mine < (2e-3 if half else 1e-6), row
    assert rows[-1]["dtypes"] == ["torch.float32", "torch.float16"] + ["torch.float32"] * 6


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("case", "dtype"), [(APPEARANCE_MLP[1], torch.bfloat16), (APPEARANCE_MLP[0], torch.float32)]
)
def test_launches_compile_ahead_without_spills(monkeypatch, case, dtype, capability):
    from dgnet_fast.kernels import appearance_mlp as kernels

    launches = record(monkeypatch, kernels, ["layer", "input_gradient", "weight_gradient"])
    code = torch.empty(case.batch, MLP_COUNT // 2 * MLP_WIDTHS[0], dtype=dtype, device="meta")
    weights = [
        torch.empty(MLP_COUNT, n_out, n_in, device="meta")
        for n_in, n_out in zip(MLP_WIDTHS[:-1], MLP_WIDTHS[1:], strict=True)
    ]
    given = {"code": code, **{f"weight{k}": w for k, w in enumerate(weights)}, "negative_slope": 0.2}
    biases = {f"bias{k}": w[:, :, 0].contiguous() for k, w in enumerate(weights)}
    a = launch("appearance_mlp", "forward", **given, **biases)
    kept = {"hidden0": a.hidden0, "hidden1": a.hidden1, "needs_code": True, "needs_weights": True}
    launch("appearance_mlp", "backward", grad=a.parameters, **given, **kept)
    assert len(launches) == 3 + 3 + 3
    compiled = assert_lean(launches, capability, 128)
    if dtype == torch.bfloat16:  # products on the matrix units
        assert all("mma" in kernel.asm["ptx"] for kernel in compiled)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [3, 48, 70])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
@pytest.mark.parametrize("size", ["paper", "odd"])
def test_values_on_the_gpu(monkeypatch, size, dtype, weight_dtype, batch):
    monkeypatch.setenv("DGNET_FAST_IMPL", "triton")
    if size == "paper":
        case = APPEARANCE_MLP[1]._replace(batch=batch)
        code, weights, biases = appearance_mlp_inputs(case, dtype=dtype, device="cuda")
    else:
        code, weights, biases = arguments((batch, 3, 37, 45, 70, 11), dtype)
    weights, biases = ([t.detach().cuda().to(weight_dtype) for t in group] for group in (weights, biases))
    given = (code.detach().cuda(), weights, biases)
    exact = run(appearance_mlp_reference, *given, dtype=torch.float64)
    ours, theirs = run(appearance_mlp, *given), run(appearance_mlp_reference, *given)
    for mine, pytorch in zip(errors(ours, exact), errors(theirs, exact), strict=True):
        assert mine <= 2 * pytorch + 1e-6, (errors(ours, exact), errors(theirs, exact))
    assert all(torch.equal(a, b) for a, b in zip(ours, run(appearance_mlp, *given), strict=True))
