"""conv3x3_act: the op against PyTorch, and its Triton body under the interpreter, compiled ahead and on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.cases import CONV3X3_ACT
from dgnet_fast.ops import conv3x3_act, conv3x3_act_reference, registry

#: (B, C, O, H, W) and slope: every row mirrored on both sides, channels of several blocks and of none that is full.
CASES = [((2, 3, 5, 2, 3), 0.2), ((1, 20, 33, 6, 5), None), ((2, 16, 4, 3, 7), 0.0)]
ORDERS = (torch.contiguous_format, torch.channels_last)


def drawn(shape, order, dtype):
    """x, weight, bias and the gradient of y."""
    batch, channels, outputs, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = (
        (batch, channels, height, width),
        (outputs, channels, 3, 3),
        (outputs,),
        (batch, outputs, height, width),
    )
    given = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    return [t.contiguous(memory_format=order) if t.ndim == 4 else t for t in given]


def results(function, case, order, dtype, wide=None, device="cpu"):
    """y and the gradients of x, weight and bias."""
    shape, slope = case
    *given, grad = (t.to(device, wide or dtype) for t in drawn(shape, order, dtype))
    leaves = [t.requires_grad_() for t in given]
    y = function(*leaves, negative_slope=slope)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def errors(found, exact):
    """Root mean square errors, relative to that of the exact values."""
    pairs = zip(found, exact, strict=True)
    return [((a.double() - b).square().mean() / b.square().mean()).sqrt().item() for a, b in pairs]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("function", [conv3x3_act, conv3x3_act_reference])
def test_it_is_padding_convolution_and_leaky_relu(function, case, order):
    def plainly(x, weight, bias, *, negative_slope):
        y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)
        return y if negative_slope is None else F.leaky_relu(y, negative_slope)

    for dtype in (torch.float64, torch.float32):
        ours, exact = (
            results(f, case, order, dtype, w) for f, w in ((function, None), (plainly, torch.float64))
        )
        assert max(errors(ours, exact)) < (1e-14 if dtype == torch.float64 else 1e-6)
        assert ours[0].is_contiguous(memory_format=order)


@pytest.mark.parametrize("order", ORDERS)
def test_opcheck(order):
    x, weight, bias, grad = drawn((2, 3, 4, 5, 4), order, torch.float32)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    ops = torch.ops.dgnet_fast
    torch.library.opcheck(ops.conv3x3_act.default, (*leaves, 0.2))
    torch.library.opcheck(ops.conv3x3_act.default, (x, weight.detach(), None, 1.0))
    y = ops.conv3x3_act(*leaves, 0.2).detach()
    given = (grad, y, x.detach(), weight.detach(), 0.2)
    for needed in ([True, True, True], [True, False, False], [False, True, False]):
        torch.library.opcheck(ops.conv3x3_act_backward.default, (*given, needed))


def test_the_triton_body_is_taken_by_name_alone(monkeypatch):
    monkeypatch.delenv("DGNET_FAST_IMPL", raising=False)
    for dtype in registry.FAST_DTYPES:
        assert registry.choose("conv3x3_act", "cuda", dtype).name == "aten"
    assert any(body.name == "triton" for body in registry.TABLE["conv3x3_act"]["cuda"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(2, 4, 3, 3)}, r"weight must have shape \(O, 3, 3, 3\), got \(2, 4, 3, 3\)"),
        ({"weight": torch.zeros(2, 3, 3, 3).half()}, "weight must have x's dtype torch.float32"),
        ({"bias": torch.zeros(3)}, r"bias must have shape \(C,\) = \(2,\), got \(3,\)"),
        ({"x": torch.zeros(1, 3, 1, 5)}, r"smaller than H and W = \(1, 5\), got 1"),
        ({"negative_slope": -1.0}, "negative_slope must be at least 0, got -1.0"),
    ],
)
@pytest.mark.parametrize("function", [conv3x3_act, conv3x3_act_reference])
def test_bad_input_is_named(function, change, message):
    good = {"x": torch.zeros(1, 3, 4, 5), "weight": torch.zeros(2, 3, 3, 3), "bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=message):
        function(**good | change)


# ---- the Triton body


def test_values_under_the_interpreter():
    pytest.importorskip("triton")
    from tests.ops.interpreted import interpreted

    rows = interpreted("interpret_conv3x3_act.py")
    assert len(rows) == len(CASES) * 2 * 2
    for row in rows:
        for mine, pytorch in zip(row["triton"], row["pytorch"], strict=True):
            assert mine <= 2 * pytorch + 1e-6, row


@pytest.mark.parametrize("capability", (80, 90))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CONV3X3_ACT, ids=lambda case: case.name)
def test_launches_compile_ahead_without_spills(monkeypatch, case, dtype, capability):
    pytest.importorskip("triton")
    from dgnet_fast.kernels import conv3x3_act as kernels

    from tests.ops.ahead import assert_lean, launch, record

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    launches = record(monkeypatch, kernels, ["forward_tile", "input_tile", "weight_part", "channel_sums"])
    order = torch.channels_last
    x = torch.empty(case.shape, dtype=dtype, device="meta").to(memory_format=order)
    weight = torch.empty(case.out_channels, case.shape[1], 3, 3, dtype=dtype, device="meta").to(
        memory_format=order
    )
    bias = torch.empty(case.out_channels, dtype=dtype, device="meta")
    y = launch("conv3x3_act", "forward", x=x, weight=weight, bias=bias, negative_slope=0.2).y
    kept = {"grad_y": y, "y": y, "x": x, "weight": weight, "negative_slope": 0.2}
    launch("conv3x3_act", "backward", **kept, needed=[True, True, True])
    assert len(launches) == 5
    products = [one for one in launches if one.function.__name__ != "channel_sums"]
    for kernel in assert_lean(products, capability, 255):
        assert "mma" in kernel.asm["ptx"], kernel.name  # tensor cores


@pytest.mark.gpu
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", registry.FAST_DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, ((4, 32, 32, 64, 32), 0.2), ((2, 64, 64, 32, 16), 0.2)], ids=str)
def test_values_on_the_gpu(monkeypatch, case, dtype, order):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    exact = results(conv3x3_act_reference, case, order, dtype, torch.float64, "cuda")
    pytorch = errors(results(conv3x3_act_reference, case, order, dtype, device="cuda"), exact)
    monkeypatch.setenv("DGNET_FAST_IMPL", "triton")
    ours, again = (results(conv3x3_act, case, order, dtype, device="cuda") for _ in range(2))
    for mine, other in zip(errors(ours, exact), pytorch, strict=True):
        assert mine <= 2 * other + 1e-6
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
