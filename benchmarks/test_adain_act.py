"""adain_act at DG-Net's shapes: reference eager, reference compiled, and each body that can run here."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import ADAIN_ACT, adain_act_inputs
from dgnet_fast.ops import adain_act, adain_act_reference

CASES = [case for case in ADAIN_ACT if case.name in ("decoder_first", "structure_stem")]


def function(how: str, device: str, monkeypatch):
    """The function called `how`, or a skip where it cannot run."""
    if how == "eager":
        return adain_act_reference
    if how == "compiled":
        torch._dynamo.reset()
        return torch.compile(adain_act_reference, fullgraph=True)
    if (how == "cpp") != (device == "cpu"):
        pytest.skip(f"{how} does not serve {device}")
    monkeypatch.setenv("DGNET_FAST_IMPL", how)
    return adain_act


@pytest.mark.parametrize("how", ["eager", "compiled", "cpp", "triton", "cuda"])
@pytest.mark.parametrize("what", ["forward", "forward_backward"])
@pytest.mark.parametrize(
    ("dtype", "channels_last"), [(torch.float32, False), (torch.bfloat16, True)], ids=["fp32", "bf16_cl"]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adain_act(benchmark, monkeypatch, device, case, dtype, channels_last, what, how):
    benchmark.group = f"{case.name} {tuple(case.shape)} {dtype} {what}"
    run = function(how, device, monkeypatch)
    inputs = adain_act_inputs(case, dtype=dtype, device=device, channels_last=channels_last)
    leaves = [tensor.requires_grad_(what != "forward") for tensor in inputs if tensor is not None]
    grad_y = torch.randn_like(inputs[0])

    def step():
        y = run(*inputs, negative_slope=case.negative_slope)
        if what != "forward":
            torch.autograd.grad(y, leaves, grad_y)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=15, warmup_rounds=3)
