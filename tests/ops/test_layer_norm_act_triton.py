"""The Triton body without a GPU: values under the interpreter, and compiled ahead for sm_80 and sm_90."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.cases import LAYER_NORM_ACT  # noqa: E402
from tests.ops.ahead import CAPABILITIES, assert_lean, launch, record  # noqa: E402
from tests.ops.interpreted import interpreted  # noqa: E402


def test_values_under_the_interpreter():
    results = interpreted("interpret_layer_norm_act.py")
    assert len(results["rows"]) == 14 + 5
    for row in results["rows"]:
        # For bfloat16 the errors are those beyond a truncation, as in test_adain_act_triton.py.
        for mine, pytorch in zip(row["triton"], row["pytorch"], strict=True):
            allowed = 2 * pytorch + 1e-5 if row["dtype"] == "torch.float16" else 3e-6
            assert mine <= allowed, row
    y, grad = results["constant"]
    assert y == 0 and grad < 1e-7 * 1e5  # rounding errors times rdenom, 1 / eps


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(("dtype", "paddings"), [(torch.bfloat16, (0, 1)), (torch.float32, (1,))])
def test_launches_compile_ahead_without_spills(monkeypatch, dtype, paddings, channels_last, capability):
    from dgnet_fast.kernels import layer_norm_act as kernels

    launches = record(
        monkeypatch,
        kernels,
        ["forward_sums", "forward_apply", "backward_sums", "backward_apply", "channel_sums"],
    )
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(LAYER_NORM_ACT[-1].shape, dtype=dtype, device="meta", memory_format=order)
    gamma, mean = torch.empty(x.shape[1], device="meta"), torch.empty(x.shape[0], device="meta")
    for padding in paddings:
        given = {
            "x": x,
            "gamma": gamma,
            "beta": gamma,
            "negative_slope": 0.2,
            "eps": 1e-5,
            "padding": padding,
        }
        small = x.new_empty(x.shape[0], 4 * x.shape[1], x.shape[2] // 2, x.shape[3] // 2)
        phases = {"x": small.to(memory_format=order), "phases": True, "bias": gamma}
        for form in (
            ({"phases": False, "bias": None}, phases) if channels_last else ({"phases": False, "bias": None},)
        ):
            form = given | form
            y = launch("layer_norm_act", "forward", **form).y
            launch("layer_norm_act", "backward", grad_y=y, **form, mean=mean, rdenom=mean)
    assert len(launches) == len(paddings) * (4 + 5 if channels_last else 4)
    assert_lean(launches, capability, 128)
