"""layer_norm_act on the CPU: the C++ body and the reference against float64, layouts, errors, compile."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.cases import LayerNormActCase, layer_norm_act_inputs
from dgnet_fast.ops import layer_norm_act, layer_norm_act_reference
from dgnet_fast.ops.phases import joined

#: Shape and padding: odd sizes, batch 1, several blocks of channels and pieces, every line mirrored twice.
CASES = [
    ((2, 5, 7, 3), 0),
    ((2, 5, 7, 3), 2),
    ((1, 33, 40, 30), 0),
    ((1, 33, 70, 30), 1),
    ((3, 70, 5, 6), 3),
    ((1, 1, 1, 9), 0),
    ((2, 4, 1, 1), 0),
    ((1, 32, 2, 70), 1),
]
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])


def prepared(shape, padding, *, dtype=torch.float32, channels_last=False):
    """Inputs, and a padded gradient that is zero where rounding may decide the activation's side."""
    inputs = layer_norm_act_inputs(LayerNormActCase("test", shape), dtype=dtype, channels_last=channels_last)
    far = layer_norm_act_reference(*(t.double() for t in inputs), padding=padding).abs() > 1e-3
    generator = torch.Generator().manual_seed(7)
    return inputs, (torch.randn(far.shape, generator=generator) * far).to(dtype)


def run(function, inputs, slope, padding, grad_y, dtype=None, eps=1e-5):
    """y and the gradients of x, gamma and beta, computed in dtype."""
    leaves = [t.to(dtype or t.dtype).clone().requires_grad_() for t in inputs]
    y = function(*leaves, negative_slope=slope, eps=eps, padding=padding)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(y.dtype))]


@LAYOUTS
@pytest.mark.parametrize("slope", [None, 0.2])
@pytest.mark.parametrize(("shape", "padding"), CASES, ids=str)
def test_float32_against_float64(shape, padding, slope, channels_last):
    inputs, grad_y = prepared(shape, padding, channels_last=channels_last)
    exact = run(layer_norm_act_reference, inputs, slope, padding, grad_y, torch.float64)
    for result, expected in zip(run(layer_norm_act, inputs, slope, padding, grad_y), exact, strict=True):
        scale = 1 + expected.abs().max().item()
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-6 * scale)


@LAYOUTS
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_error_at_most_twice_pytorchs(dtype, padding, channels_last):
    inputs, grad_y = prepared((2, 40, 32, 20), padding, dtype=dtype, channels_last=channels_last)
    exact = run(layer_norm_act_reference, inputs, 0.2, padding, grad_y, torch.float64)
    ours = run(layer_norm_act, inputs, 0.2, padding, grad_y)
    theirs = run(layer_norm_act_reference, inputs, 0.2, padding, grad_y)
    for mine, pytorch, expected in zip(ours, theirs, exact, strict=True):
        error, allowed = ((r.double() - expected).abs().max() for r in (mine, pytorch))
        assert error <= 2 * allowed + 1e-5, (error, allowed)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("phases", [False, True])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_bias_and_phases(dtype, phases, padding, channels_last):
    """They are those of the picture that they make."""
    shape = (2, 12, 5, 4) if phases else (2, 3, 10, 8)
    generator = torch.Generator().manual_seed(0)
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=order)
    gamma, beta, bias = (torch.randn(3, generator=generator) for _ in range(3))
    wide = (t.double() for t in (x, gamma, beta, bias))
    far = (
        layer_norm_act_reference(*wide, padding=padding, phases=phases).abs() > 0.1
    )  # no side that rounding decides
    grad_y = (torch.randn(far.shape, generator=generator) * far).to(dtype)
    results = []
    for wide, function in ((None, layer_norm_act), (None, layer_norm_act_reference), (torch.float64, None)):
        leaves = [t.detach().to(wide or t.dtype).requires_grad_() for t in (x, gamma, beta, bias)]
        if function is None:
            picture = joined(leaves[0], leaves[3]) if phases else leaves[0] + leaves[3].view(-1, 1, 1)
            y = layer_norm_act_reference(picture, *leaves[1:3], negative_slope=0.2, padding=padding)
        else:
            y = function(*leaves, negative_slope=0.2, padding=padding, phases=phases)
        grads = torch.autograd.grad(y, leaves, grad_y.to(y.dtype))
        assert grads[0].is_contiguous(memory_format=order) and y.is_contiguous(memory_format=order)
        results.append([t.detach().double() for t in (y, *grads)])
    error = {torch.float32: 1e-5, torch.float64: 1e-6, torch.bfloat16: 3e-2}[dtype]
    for ours, reference, exact in zip(*results, strict=True):
        for mine in (ours, reference):
            torch.testing.assert_close(mine, exact, rtol=error, atol=error * (1 + exact.abs().max().item()))


def test_phases_of_other_numbers_of_channels_are_named():
    with pytest.raises(ValueError, match="4 C channels, got 6"):
        layer_norm_act(torch.zeros(1, 6, 2, 2), torch.ones(1), torch.zeros(1), phases=True)


@pytest.mark.parametrize("function", [layer_norm_act, layer_norm_act_reference])
def test_it_is_the_formula(function):
    x, gamma, beta = (t.double() for t in prepared((3, 4, 6, 5), 0)[0])
    for sample, y in zip(x, function(x, gamma, beta, negative_slope=0.1, eps=1e-2, padding=2), strict=True):
        z = (sample - sample.mean()) / (sample.std() + 1e-2)  # std is unbiased
        z = F.leaky_relu(z * gamma[:, None, None] + beta[:, None, None], 0.1)
        torch.testing.assert_close(y, F.pad(z, (2, 2, 2, 2), mode="reflect"))


@LAYOUTS
def test_statistics_of_a_million_elements_far_from_zero(channels_last):
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = (torch.randn(1, 32, 256, 128) + 300).contiguous(memory_format=order)
    one, zero = torch.ones(32), torch.zeros(32)
    # float32 numbers near 300 are 3e-5 apart, so the values of x are exact but its mean is not.
    y = layer_norm_act(x, one, zero)
    torch.testing.assert_close(y.double(), layer_norm_act_reference(x.double(), one, zero), rtol=0, atol=3e-5)


@LAYOUTS
def test_a_constant_sample(channels_last):
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.full((2, 3, 4, 5), 7.0).contiguous(memory_format=order)
    x[1] = torch.randn(3, 4, 5)
    gamma, beta, grad_y = torch.ones(3), torch.arange(3.0), torch.randn(2, 3, 4, 5)
    exact = run(layer_norm_act_reference, (x, gamma, beta), None, 0, grad_y, torch.float64)
    for result, expected in zip(run(layer_norm_act, (x, gamma, beta), None, 0, grad_y), exact, strict=True):
        # 1 / eps makes gradients of 1e5 out of differences of values around 1, whose rounding stays behind
        largest = expected.abs().max().item()
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=max(1e-5, 1e-6 * largest))


@pytest.mark.filterwarnings("ignore:std_mean")
def test_one_element_has_no_deviation():
    x, one = torch.ones(2, 1, 1, 1), torch.ones(1)
    assert layer_norm_act(x, one, one).isnan().all() and layer_norm_act_reference(x, one, one).isnan().all()


@LAYOUTS
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_values_stay_in_their_sample(value, channels_last):
    (x, gamma, beta), grad_y = prepared((3, 5, 6, 7), 1, channels_last=channels_last)
    x[1, 2, 3, 4] = value
    ours, expected = (
        run(function, (x, gamma, beta), 0.2, 1, grad_y)
        for function in (layer_norm_act, layer_norm_act_reference)
    )
    assert ours[0][1].isnan().all() and ours[1][0].isfinite().all()
    for result, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-4, atol=1e-4, equal_nan=True)


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
    gamma, beta = (torch.randn(2 * x.shape[1])[::2] for _ in range(2))
    ours = run(layer_norm_act, (x, gamma, beta), None, 0, grad_y)
    exact = run(layer_norm_act_reference, (x, gamma, beta), None, 0, grad_y, torch.float64)
    for result, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_result_keeps_layout_and_dtype(dtype):
    for order in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=order).requires_grad_()
        gamma, beta = torch.ones(3, requires_grad=True), torch.zeros(3, dtype=dtype, requires_grad=True)
        y = layer_norm_act(x, gamma, beta, padding=1)
        y.square().sum().backward()
        assert y.is_contiguous(memory_format=order) and y.dtype == dtype
        assert x.grad.is_contiguous(memory_format=order) and x.grad.dtype == dtype
        assert gamma.grad.dtype == torch.float32 and beta.grad.dtype == dtype


@LAYOUTS
@pytest.mark.parametrize("padding", [0, 2])
def test_threads_do_not_change_results(padding, channels_last):
    inputs, grad_y = prepared((2, 37, 71, 13), padding, channels_last=channels_last)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(layer_norm_act, inputs, 0.2, padding, grad_y))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(first, second) for first, second in zip(results[0], other, strict=True))


@LAYOUTS
@pytest.mark.parametrize("padding", [0, 2])
def test_opcheck(padding, channels_last):
    (x, gamma, beta), grad_y = prepared((2, 3, 4, 5), padding, channels_last=channels_last)
    forward, backward = torch.ops.dgnet_fast.layer_norm_act, torch.ops.dgnet_fast.layer_norm_act_backward
    _, mean, rdenom = forward(x, gamma, beta, None, 0.2, 1e-5, padding, False)
    torch.library.opcheck(
        backward.default, (grad_y, x, gamma, beta, None, mean, rdenom, 0.2, 1e-5, padding, False)
    )
    leaves = [t.requires_grad_() for t in (x, gamma, beta)]
    torch.library.opcheck(forward.default, (*leaves, None, 0.2, 1e-5, padding, False))
    strided = x.detach()[:, :, ::2].requires_grad_()
    torch.library.opcheck(forward.default, (strided, gamma, beta, None, 1.0, 1e-5, padding // 2, False))
    phases, bias = torch.randn(2, 12, 4, 5, requires_grad=True), torch.randn(3, requires_grad=True)
    torch.library.opcheck(forward.default, (phases, gamma, beta, bias, 0.2, 1e-5, padding, True))


@pytest.mark.parametrize("function", [layer_norm_act, layer_norm_act_reference])
@pytest.mark.parametrize(("slope", "padding"), [(None, 0), (0.3, 2)])
def test_gradcheck_in_float64(function, slope, padding):
    leaves = [t.double().requires_grad_() for t in prepared((2, 2, 4, 3), padding)[0]]
    assert torch.autograd.gradcheck(
        lambda *given: function(*given, negative_slope=slope, padding=padding), leaves
    )


def test_second_derivatives():
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    gamma, beta = torch.rand(2), torch.rand(2)
    assert torch.autograd.gradgradcheck(lambda x: layer_norm_act_reference(x, gamma, beta, padding=1), (x,))
    (grad,) = torch.autograd.grad(layer_norm_act(x, gamma, beta).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


def test_compiled_is_eager(fresh_compiler):
    def block(x, gamma, beta, **given):
        return layer_norm_act(F.relu(x), gamma, beta, **given) * 2

    inputs, grad_y = prepared((2, 8, 6, 5), 1, channels_last=True)
    compiled = torch.compile(block, fullgraph=True)
    eager, graph = (run(function, inputs, 0.2, 1, grad_y) for function in (block, compiled))
    for mine, other in zip(eager, graph, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "x must have 4 dimensions"),
        ({"x": torch.zeros(0, 3, 4, 4)}, r"x must not be empty, got shape \(0, 3, 4, 4\)"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, "x must have one of the dtypes"),
        ({"gamma": torch.zeros(2)}, r"gamma must have shape \(C,\) = \(3,\), got \(2,\)"),
        ({"beta": torch.zeros(3, 1)}, r"beta must have shape \(C,\) = \(3,\), got \(3, 1\)"),
        ({"beta": torch.zeros(3, dtype=torch.float64)}, "beta must have x's dtype"),
        ({"gamma": torch.zeros(3, device="meta")}, "gamma must be on x's device"),
        ({"padding": 4}, r"padding must be at least 0 and smaller than H and W = \(4, 4\), got 4"),
        ({"padding": -1}, "padding must be at least 0"),
        ({"padding": 1.5}, "padding must be an int, got 1.5"),
    ],
)
@pytest.mark.parametrize("function", [layer_norm_act, layer_norm_act_reference])
def test_bad_input_is_named(function, change, message):
    good = {"x": torch.zeros(2, 3, 4, 4), "gamma": torch.zeros(3), "beta": torch.zeros(3)}
    with pytest.raises(ValueError, match=message):
        function(**{**good, **change})
