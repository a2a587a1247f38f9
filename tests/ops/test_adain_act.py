"""adain_act on the CPU: the C++ body and the reference against float64, layouts, errors, compile."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.cases import ADAIN_ACT, AdainActCase, adain_act_inputs
from dgnet_fast.ops import adain_act, adain_act_reference
from dgnet_fast.ops.native import _C

LOW = [torch.bfloat16, torch.float16]
SHAPES = [(2, 5, 7, 3), (1, 1, 1, 9), (3, 70, 5, 5), (1, 33, 40, 30), (2, 4, 1, 1)]


def case(shape, adaptive=True, slope: float | None = 0.2, residual=True) -> AdainActCase:
    return AdainActCase("test", shape, adaptive, slope, residual)


def run(function, inputs, negative_slope, grad_y, dtype=None):
    """y and the gradients of all given inputs, computed in dtype."""
    leaves = [t if t is None else t.to(dtype or t.dtype).clone().requires_grad_() for t in inputs]
    y = function(*leaves, negative_slope=negative_slope)
    given = [leaf for leaf in leaves if leaf is not None]
    return [y.detach(), *torch.autograd.grad(y, given, grad_y.to(y.dtype))]


def away_from_kink(inputs, negative_slope):
    """A gradient that is zero where the activation's input is so near 0 that rounding may decide its side."""
    x, scale, shift, _ = (None if t is None else t.double() for t in inputs)
    z = adain_act_reference(x, scale, shift)
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(7)) * (z.abs() > 1e-3)


def errors(results, exact):
    return [(r.double() - e).abs().max().item() for r, e in zip(results, exact, strict=True)]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("adaptive", [True, False], ids=["adain", "instance_norm"])
@pytest.mark.parametrize("slope", [None, 0.2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_against_float64(shape, slope, adaptive, channels_last):
    inputs = adain_act_inputs(case(shape, adaptive, slope), channels_last=channels_last)
    grad_y = away_from_kink(inputs, slope)
    exact = run(adain_act_reference, inputs, slope, grad_y, torch.float64)
    for result, expected in zip(run(adain_act, inputs, slope, grad_y), exact, strict=True):
        # One pixel a plane: rstd is 1 / sqrt(eps) = 316, and so is the size of what cancels in grad_x.
        scale = expected.abs().max().item() + (316 if shape[2:] == (1, 1) else 1)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-6 * scale)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("index", [1, 3], ids=["decoder", "structure"])
def test_low_precision_error_at_most_twice_pytorchs(index, dtype, channels_last):
    real = ADAIN_ACT[index]
    small = real._replace(shape=(2, *real.shape[1:]))
    inputs = adain_act_inputs(small, dtype=dtype, channels_last=channels_last)
    grad_y = away_from_kink(inputs, small.negative_slope).to(dtype)
    exact = run(adain_act_reference, inputs, small.negative_slope, grad_y, torch.float64)
    ours = errors(run(adain_act, inputs, small.negative_slope, grad_y), exact)
    theirs = errors(run(adain_act_reference, inputs, small.negative_slope, grad_y), exact)
    for mine, pytorch in zip(ours, theirs, strict=True):
        assert mine <= 2 * pytorch + 1e-5, (ours, theirs)


def test_reference_is_pytorchs_instance_norm():
    x, scale, shift, _ = adain_act_inputs(case((3, 4, 6, 5)), dtype=torch.float64)
    scale, shift = scale.double(), shift.double()
    y = F.instance_norm(x, eps=1e-3) * scale[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(
        adain_act_reference(x, scale, shift, negative_slope=0.1, eps=1e-3), F.leaky_relu(y, 0.1)
    )


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_variance_is_accurate_far_from_zero(channels_last):
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = (torch.randn(2, 33, 60, 50) + 1000).contiguous(memory_format=order)
    y = adain_act(x)
    # float32 numbers near 1000 are 6e-5 apart: E[x^2] - mean^2 would be off by about 0.1.
    torch.testing.assert_close(y.double(), adain_act_reference(x.double()), rtol=0, atol=2e-4)


def test_large_plane():
    x = torch.randn(1, 2, 500, 701) + 3
    torch.testing.assert_close(adain_act(x).double(), adain_act_reference(x.double()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_value_of_a_16_bit_type_is_read_and_written(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    residual = bits.view(dtype).reshape(1, 1, 256, 256)
    # A constant x gives zero before the residual is added: every value must come through, NaN as NaN.
    y = adain_act(torch.ones_like(residual), residual=residual)
    torch.testing.assert_close(y, residual, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_pytorchs(dtype):
    generator = torch.Generator().manual_seed(3)
    exponent = torch.empty(1, 200_000).uniform_(-30, 18, generator=generator)
    shift = torch.randn(1, 200_000, generator=generator) * exponent.exp2()
    shift[0, :6] = torch.tensor([65519.0, 65520.0, -65520.0, torch.inf, torch.nan, 2.0**-25])
    x = torch.zeros(1, 200_000, 1, 1, dtype=dtype)
    y = adain_act(x, torch.ones_like(shift), shift)
    torch.testing.assert_close(y[:, :, 0, 0], shift.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("view", ["slice", "permute", "expand"])
def test_strided_inputs(view):
    base = torch.randn(4, 6, 8, 10)
    x = {
        "slice": base[:, 1:5, ::2, 3:],
        "permute": base.permute(0, 3, 2, 1),
        "expand": base[:1].expand(3, -1, -1, -1),
    }
    x = x[view]
    grad_y = torch.randn(1).expand(x.shape)
    residual = torch.randn(x.shape).contiguous(memory_format=torch.channels_last)
    codes = [torch.randn(x.shape[1], x.shape[0]).T for _ in range(2)]
    ours = run(adain_act, (x, *codes, residual), None, grad_y)
    exact = run(adain_act_reference, (x, *codes, residual), None, grad_y, torch.float64)
    for result, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_result_keeps_layout_and_dtype(dtype):
    for order in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=order).requires_grad_()
        scale = torch.ones(2, 3, requires_grad=True)
        y = adain_act(x, scale, torch.zeros(2, 3))
        y.sum().backward()
        assert y.is_contiguous(memory_format=order) and y.dtype == dtype
        assert x.grad.is_contiguous(memory_format=order) and x.grad.dtype == dtype
        assert scale.grad.dtype == torch.float32


def test_threads_do_not_change_results_and_torch_sets_them():
    inputs = adain_act_inputs(case((3, 70, 9, 9)), channels_last=True)
    grad_y = torch.randn(3, 70, 9, 9)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert _C.openmp_threads() == threads
            results.append(run(adain_act, inputs, 0.2, grad_y))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(first, second)


def small_inputs(dtype=torch.float32, channels_last=False):
    inputs = adain_act_inputs(case((2, 3, 4, 3)), dtype=dtype, channels_last=channels_last)
    return [tensor.requires_grad_() for tensor in inputs]


@pytest.mark.parametrize("slope", [1.0, 0.2])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_opcheck(channels_last, slope):
    x, scale, shift, residual = small_inputs(channels_last=channels_last)
    op = torch.ops.dgnet_fast.adain_act.default
    torch.library.opcheck(op, (x, scale, shift, residual, slope, 1e-5, 0))
    torch.library.opcheck(op, (x.detach()[:, :, ::2].requires_grad_(), None, None, None, slope, 1e-5, 0))


def test_opcheck_of_the_backward():
    x, scale, shift, _ = (tensor.detach() for tensor in small_inputs())
    _, mean, rstd = torch.ops.dgnet_fast.adain_act(x, scale, shift, None, 0.2, 1e-5, 0)
    op = torch.ops.dgnet_fast.adain_act_backward.default
    for grad_y in (
        torch.randn_like(x),
        torch.randn(2, 4, 3, 3).permute(0, 3, 1, 2),
        torch.ones(()).expand(x.shape),
    ):
        torch.library.opcheck(op, (grad_y, x, scale, shift, mean, rstd, 0.2, 0, False))


@pytest.mark.parametrize("function", [adain_act, adain_act_reference])
@pytest.mark.parametrize("slope", [None, 0.3])
def test_gradcheck_in_float64(function, slope):
    inputs = [t.detach().double().requires_grad_() for t in small_inputs()]
    assert torch.autograd.gradcheck(lambda *args: function(*args, negative_slope=slope), inputs)
    assert torch.autograd.gradcheck(lambda x: function(x, negative_slope=slope), inputs[:1])


def test_second_derivatives():
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(adain_act_reference, (x,))
    (grad,) = torch.autograd.grad(adain_act(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


def test_compiled_is_eager(fresh_compiler):
    def block(x, scale, shift, residual):
        return adain_act(F.relu(x), scale, shift, residual, negative_slope=0.2) * 2

    compiled = torch.compile(block, fullgraph=True)
    for channels_last in (False, True):
        inputs = adain_act_inputs(case((2, 8, 6, 5)), channels_last=channels_last)
        grad_y = torch.randn(2, 8, 6, 5)

        def twice(function, inputs=inputs, grad_y=grad_y):
            leaves = [t.clone().requires_grad_() for t in inputs]
            y = function(*leaves)
            return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]

        for eager, graph in zip(twice(block), twice(compiled), strict=True):
            torch.testing.assert_close(graph, eager)


def test_autocast_and_functional_call():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.scale = torch.nn.Parameter(torch.randn(2, 4))

        def forward(self, x):
            return adain_act(self.conv(x), self.scale, torch.zeros_like(self.scale), negative_slope=0.2)

    block, x = Block(), torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), block(x), rtol=0.05, atol=0.05)

    changed = {name: (value * 2).detach().requires_grad_() for name, value in block.named_parameters()}
    torch.func.functional_call(block, changed, x).square().sum().backward()
    z = F.conv2d(x, changed["conv.weight"], changed["conv.bias"], padding=1)
    zero = torch.zeros(2, 4)
    expected = adain_act_reference(z, changed["scale"], zero, negative_slope=0.2).square().sum()
    gradients = torch.autograd.grad(expected, list(changed.values()))
    rounding = 1e-5 * max(
        grad.abs().max().item() for grad in gradients
    )  # all there is to a bias before a norm
    for name, grad in zip(changed, gradients, strict=True):
        torch.testing.assert_close(changed[name].grad, grad, rtol=1e-4, atol=rounding)
        assert dict(block.named_parameters())[name].grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "x must have 4 dimensions"),
        ({"x": torch.zeros(0, 3, 4, 4)}, "x must not be empty"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, "x must have one of the dtypes"),
        ({"shift": None}, "together"),
        ({"scale": torch.zeros(2, 4)}, r"scale must have shape \(B, C\) = \(2, 3\), got \(2, 4\)"),
        ({"shift": torch.zeros(2, 3, dtype=torch.float64)}, "shift must have x's dtype"),
        ({"scale": torch.zeros(2, 3, device="meta")}, "scale must be on x's device"),
        ({"residual": torch.zeros(2, 3, 4, 1)}, "residual must have x's shape"),
        ({"residual": torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)}, "residual must have x's dtype"),
        ({"padding": 4}, r"padding must be at least 0 and smaller than H and W = \(4, 4\), got 4"),
        ({"padding": -1}, "padding must be at least 0"),
        ({"padding": 1.5}, "padding must be an int, got 1.5"),
    ],
)
@pytest.mark.parametrize("function", [adain_act, adain_act_reference])
def test_bad_input_is_named(function, change, message):
    good = {
        "x": torch.zeros(2, 3, 4, 4),
        "scale": torch.zeros(2, 3),
        "shift": torch.zeros(2, 3),
        "residual": torch.zeros(2, 3, 4, 4),
    }
    with pytest.raises(ValueError, match=message):
        function(**{**good, **change})
