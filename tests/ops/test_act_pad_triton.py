"""The Triton body: values under the interpreter, compiled ahead for sm_80 and sm_90, values on a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.cases import ACT_PAD, ActPadCase, act_pad_inputs  # noqa: E402
from dgnet_fast.ops import act_pad  # noqa: E402
from tests.ops.ahead import CAPABILITIES, assert_lean, launch, record  # noqa: E402
from tests.ops.interpreted import interpreted  # noqa: E402
from tests.ops.test_act_pad import CASES, LAYOUTS, SLOPES, plainly, prepared, run  # noqa: E402

#: A picture, and planes shorter than a tile.
ODD = [ActPadCase("picture", (16, 3, 256, 128)), ActPadCase("short", (3, 70, 5, 6))]


def test_values_under_the_interpreter():
    errors = interpreted("interpret_act_pad.py")
    assert [len(found) for found in errors.values()] == [40, 10, 10, 4]
    assert max(errors["two readers"]) < 2e-6
    assert max(errors["torch.float32"]) < 5e-6
    assert max(errors["torch.float16"]) < 2**-11 * 1.01
    assert max(errors["torch.bfloat16"]) < 2**-7  # the interpreter truncates where a GPU rounds


@pytest.mark.parametrize("capability", CAPABILITIES)
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", [*ACT_PAD, *ODD], ids=lambda case: case.name)
def test_launches_compile_ahead_without_spills(monkeypatch, case, dtype, channels_last, capability):
    from dgnet_fast.kernels import act_pad as kernels

    launches = record(monkeypatch, kernels, ["forward_tile", "backward_tiles", "channel_sums"])
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(case.shape, dtype=dtype, device="meta", memory_format=order)
    bias = torch.empty(case.shape[1], dtype=dtype, device="meta")
    none = {"sides": None, "bias": None, "residual": None}
    alone = {"grad_again": None, "bias_dtype": None}
    for slope in (0.2, 1.0):
        given = {"negative_slope": slope, "padding": 1}
        y = launch("act_pad", "forward", x=x, **none, **given).y
        launch("act_pad", "forward", x=x, **none | {"bias": bias}, **given)
        sides = None if slope == 1 else y
        launch("act_pad", "backward", grad_y=y, sides=sides, **alone, **given)
        launch("act_pad", "backward", grad_y=y, sides=sides, grad_again=None, bias_dtype=dtype, **given)
        launch("act_pad", "forward", x=x, **none | {"sides": sides}, **given)
    # D's residual block: the sum, and its backward pass for two readers
    launch("act_pad", "forward", x=x, **none | {"bias": bias, "residual": y[:, :, 1:-1, 1:-1]}, **given)
    launch("act_pad", "backward", grad_y=y, sides=None, grad_again=x, bias_dtype=dtype, **given)
    y = launch("act_pad", "forward", x=x, **none | {"bias": bias}, negative_slope=0.2, padding=0).y
    launch("act_pad", "backward", grad_y=y, sides=y, **alone, negative_slope=0.2, padding=0)
    assert len(launches) == 12 + 4 + 1
    # up to 149 for small pictures in the contiguous layout, in blocks of four warps
    assert_lean(launches, capability, 160)


@pytest.mark.gpu
@LAYOUTS
@SLOPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "padding"), [*CASES, *((case.shape, 1) for case in ACT_PAD)], ids=str)
def test_values_on_the_gpu(shape, padding, dtype, slope, channels_last):
    given = [t.cuda() for t in prepared(shape, padding, dtype=dtype, channels_last=channels_last)]
    exact = run(plainly, given, slope, padding, torch.float64)
    ours = run(act_pad, given, slope, padding)
    half_a_step = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for mine, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1.01 * half_a_step, atol=1e-6)
    again = run(act_pad, given, slope, padding)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("case", ACT_PAD, ids=lambda case: case.name)
def test_the_memory_order_stays_on_the_gpu(case):
    (x,) = act_pad_inputs(case, dtype=torch.bfloat16, device="cuda", channels_last=True)
    y = act_pad(x.requires_grad_(), negative_slope=0.2, padding=1)
    results = y, *torch.autograd.grad(y.sum(), x)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in results)
