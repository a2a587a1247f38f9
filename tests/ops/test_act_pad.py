"""act_pad on the CPU: the C++ body and the reference against PyTorch in float64, layouts, derivatives, errors, compile."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.cases import ActPadCase, act_pad_inputs
from dgnet_fast.ops import act_pad, act_pad_reference
from dgnet_fast.ops.act_pad import act_pad_for_two
from dgnet_fast.ops.input_alone import InputAlone

#: Shape and padding: odd sizes, batch 1, every line mirrored on both sides, more channels than a cache line holds.
CASES = [
    ((2, 5, 7, 3), 2),
    ((1, 33, 40, 30), 1),
    ((3, 70, 5, 6), 3),
    ((1, 1, 4, 9), 3),
    ((2, 40, 2, 2), 1),
    ((1, 4, 70, 33), 6),
]
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
SLOPES = pytest.mark.parametrize("slope", [None, 0.2])


def plainly(x, *, negative_slope, padding):
    """What the op is, as anyone would write it."""
    x = x if negative_slope is None else F.leaky_relu(x, negative_slope)
    return F.pad(x, (padding,) * 4, mode="reflect") if padding else x


def prepared(shape, padding, *, dtype=torch.float32, channels_last=False):
    """x, and gradients of y and of grad_x, all in one memory order."""
    (x,) = act_pad_inputs(ActPadCase("test", shape), dtype=dtype, channels_last=channels_last)
    generator = torch.Generator().manual_seed(7)
    height, width = (size + 2 * padding for size in shape[2:])
    order = torch.channels_last if channels_last else torch.contiguous_format
    grad_y, cotangent = (
        torch.randn(sizes, generator=generator).to(dtype).contiguous(memory_format=order)
        for sizes in ((*shape[:2], height, width), shape)
    )
    return x, grad_y, cotangent


def run(function, given, slope, padding, dtype=None):
    """y, grad_x and, as a penalty takes it, the gradient that grad_x gives to grad_y."""
    x, grad_y, cotangent = (t.to(dtype or t.dtype).requires_grad_() for t in given)
    y = function(x, negative_slope=slope, padding=padding)
    (grad_x,) = torch.autograd.grad(y, x, grad_y, create_graph=True)
    (again,) = torch.autograd.grad(grad_x, grad_y, cotangent)
    return [t.detach() for t in (y, grad_x, again)]


@LAYOUTS
@SLOPES
@pytest.mark.parametrize(("shape", "padding"), CASES, ids=str)
@pytest.mark.parametrize("function", [act_pad, act_pad_reference])
def test_it_is_leaky_relu_and_padding(function, shape, padding, slope, channels_last):
    given = prepared(shape, padding, channels_last=channels_last)
    exact = run(plainly, given, slope, padding, torch.float64)
    ours = run(function, given, slope, padding)
    for result, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours[0], plainly(given[0], negative_slope=slope, padding=padding))


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_rounds_once(dtype, channels_last):
    given = prepared((2, 40, 12, 9), 2, dtype=dtype, channels_last=channels_last)
    exact = run(plainly, given, 0.2, 2, torch.float64)
    for result, expected in zip(run(act_pad, given, 0.2, 2), exact, strict=True):
        half_a_step = torch.finfo(dtype).eps / 2
        torch.testing.assert_close(result.double(), expected, rtol=1.001 * half_a_step, atol=1e-6)


@LAYOUTS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_values_stay_where_they_are(value, channels_last):
    given = prepared((1, 3, 6, 7), 1, channels_last=channels_last)
    given[0][0, 1, 2, 3] = value
    ours, expected = (run(function, given, 0.2, 1) for function in (act_pad, plainly))
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True)


@pytest.mark.parametrize("view", ["slice", "permute", "expand"])
def test_strided_inputs(view):
    base = torch.randn(4, 6, 8, 10)
    views = {
        "slice": base[:, 1:5, ::2, 3:],
        "permute": base.permute(0, 3, 2, 1),
        "expand": base[:1].expand(3, -1, -1, -1),
    }
    x = views[view].detach().requires_grad_()
    y = act_pad(x, negative_slope=0.2, padding=1)
    assert torch.equal(y, plainly(x, negative_slope=0.2, padding=1))
    grad_y = torch.randn(1).expand(y.shape)
    (ours,), (expected,) = (
        torch.autograd.grad(r, x, grad_y) for r in (y, plainly(x, negative_slope=0.2, padding=1))
    )
    torch.testing.assert_close(ours, expected)


@SLOPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_results_keep_the_order_of_x_and_its_dtype(dtype, slope):
    """Whatever the order in which gradients come."""
    orders = (torch.contiguous_format, torch.channels_last)
    for order, other in (orders, orders[::-1]):
        x, grad_y, cotangent = prepared((2, 3, 4, 5), 1, dtype=dtype, channels_last=order == orders[1])
        given = x, *(t.contiguous(memory_format=other) for t in (grad_y, cotangent))
        mixed, wanted = (run(act_pad, t, slope, 1) for t in (given, (x, grad_y, cotangent)))
        for mine, expected in zip(mixed, wanted, strict=True):
            assert mine.is_contiguous(memory_format=order) and mine.dtype == dtype
            assert torch.equal(mine, expected)


def test_only_the_result_is_kept():
    kept = []
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = act_pad(x, negative_slope=0.2, padding=1)
        act_pad(x, padding=1)
    assert [t.data_ptr() for t in kept] == [y.data_ptr()]


@LAYOUTS
def test_threads_do_not_change_results(channels_last):
    given = prepared((2, 37, 31, 13), 2, channels_last=channels_last)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(act_pad, given, 0.2, 2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(first, second) for first, second in zip(results[0], other, strict=True))


@LAYOUTS
def test_opcheck(channels_last):
    x, grad_y, _ = prepared((2, 3, 4, 5), 2, channels_last=channels_last)
    forward, backward = torch.ops.dgnet_fast.act_pad.default, torch.ops.dgnet_fast.act_pad_backward.default
    sides = forward(x, None, None, None, 0.2, 2)
    for given in ((grad_y, sides, 0.2, 2), (grad_y, None, 1.0, 2, x, torch.bfloat16)):
        torch.library.opcheck(backward, given)
    x.requires_grad_()
    bias = torch.randn(3, requires_grad=True)
    for given in (
        (x, None, None, None, 0.2, 2),
        (x, None, bias, x.detach(), 0.2, 2),
        (x, sides, None, None, 0.2, 2),
        (x, None, None, None, 1.0, 2),
    ):
        torch.library.opcheck(forward, given)
    torch.library.opcheck(forward, (x.detach()[:, :, ::2].requires_grad_(), None, None, None, 1.0, 1))


def test_slope_0_is_relu():
    x, grad_y, _ = prepared((2, 3, 4, 5), 1)
    y = act_pad(x.requires_grad_(), negative_slope=0.0, padding=1)
    expected = plainly(x, negative_slope=0.0, padding=1)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(*(torch.autograd.grad(result, x, grad_y) for result in (y, expected)))


@pytest.mark.parametrize("sides", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 6, 6, dtype=torch.float64)])
def test_wrong_sides_are_named(sides):
    calls = (
        ("act_pad", torch.zeros(2, 3, 4, 4), sides, None, None),
        ("act_pad_backward", torch.zeros(2, 3, 6, 6), sides),
    )
    for op, *given in calls:
        with pytest.raises(ValueError, match=r"sides must have shape \(2, 3, 6, 6\), torch.float32"):
            getattr(torch.ops.dgnet_fast, op)(*given, 0.2, 1)


@SLOPES
@pytest.mark.parametrize("function", [act_pad, act_pad_reference])
def test_derivatives_of_any_order_in_float64(function, slope):
    x = prepared((2, 2, 4, 3), 2)[0].double().requires_grad_()

    def bent(x):  # so that second derivatives are not all zero
        return function(x, negative_slope=slope, padding=2).square()

    assert torch.autograd.gradcheck(bent, (x,)) and torch.autograd.gradgradcheck(bent, (x,))


@LAYOUTS
@SLOPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "padding"), [*CASES[:3], ((2, 5, 7, 3), 0)], ids=str)
@pytest.mark.parametrize("function", [act_pad, act_pad_reference])
def test_a_bias_is_added_before(function, shape, padding, dtype, slope, channels_last):
    """Rounded once, with the gradients that adding it apart has."""
    slope = slope if padding else 0.2
    given = prepared(shape, padding, dtype=dtype, channels_last=channels_last)
    bias = torch.randn(shape[1], generator=torch.Generator().manual_seed(3))
    results = []
    for wide in (None, torch.float64):
        x, grad_y = (t.to(wide or dtype).requires_grad_() for t in given[:2])
        leaf = bias.to(wide or torch.float32).requires_grad_()
        if wide:
            y = plainly(x + leaf.view(-1, 1, 1), negative_slope=slope, padding=padding)
        else:
            y = function(x, leaf, negative_slope=slope, padding=padding)
            assert y.dtype == dtype and y.is_contiguous(memory_format=_order(channels_last))
        results.append([y, *torch.autograd.grad(y, (x, leaf), grad_y)])
    (y, grad_x, grad_bias), (exact_y, exact_x, exact_bias) = (
        [t.double() for t in found] for found in results
    )
    rounding = 1.01 * torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(y, exact_y, rtol=rounding, atol=1e-6)
    torch.testing.assert_close(grad_x, exact_x, rtol=rounding, atol=1e-6)
    # a sum of what is rounded
    assert ((grad_bias - exact_bias).abs() <= 2 * rounding * exact_x.abs().sum((0, 2, 3))).all()


def _order(channels_last):
    return torch.channels_last if channels_last else torch.contiguous_format


@pytest.mark.parametrize(("slope", "padding"), [(None, 2), (0.2, 2), (0.2, 0)])
@pytest.mark.parametrize("function", [act_pad, act_pad_reference])
def test_derivatives_with_a_bias_in_float64(function, slope, padding):
    x, bias = torch.randn(2, 2, 4, 3).double().requires_grad_(), torch.randn(2).double().requires_grad_()

    def bent(x, bias):
        return function(x, bias, negative_slope=slope, padding=padding).square()

    assert torch.autograd.gradcheck(bent, (x, bias)) and torch.autograd.gradgradcheck(bent, (x, bias))


def plainly_for_two(x, bias, residual, *, negative_slope, padding):
    """y and the picture within, as anyone would write it."""
    z = x + bias.view(-1, 1, 1) + residual
    z = z if negative_slope is None else F.leaky_relu(z, negative_slope)
    return F.pad(z, (padding,) * 4, mode="reflect"), z


def two_readers(function, shape, slope, channels_last, dtype=None):
    """Both results for a residual within a padded picture, all gradients and, as a penalty takes them, the gradients that
    these give to those of the results.
    """
    padded = (*shape[:2], shape[2] + 2, shape[3] + 2)
    sizes = (shape, shape[1:2], padded, padded, shape, shape, shape[1:2], padded)
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(size, generator=generator) for size in sizes]
    order = torch.channels_last if channels_last else torch.contiguous_format
    drawn = [t.contiguous(memory_format=order) if t.ndim == 4 else t for t in drawn]
    drawn = [t.to(dtype or t.dtype).requires_grad_() for t in drawn]
    x, bias, buffer, grad_y, grad_again, *cotangents = drawn
    ys = function(x, bias, buffer[:, :, 1:-1, 1:-1], negative_slope=slope, padding=1)
    grads = torch.autograd.grad(ys, (x, bias, buffer), (grad_y, grad_again), create_graph=True)
    again = torch.autograd.grad(grads, (grad_y, grad_again), cotangents)
    return [t.detach() for t in (*ys, *grads, *again)]


@LAYOUTS
@SLOPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_residual_and_a_second_reader(dtype, slope, channels_last):
    given = (2, 5, 6, 4), slope, channels_last
    ours, exact = (
        two_readers(act_pad_for_two, *given, dtype),
        two_readers(plainly_for_two, *given, torch.float64),
    )
    for mine, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=2e-6, atol=5e-6)


def test_a_residual_without_padding():
    x, residual = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for function in (act_pad, act_pad_reference):
        torch.testing.assert_close(function(x, None, residual, padding=0), x + residual)


@pytest.mark.parametrize("read", [0, 1])
def test_one_of_two_readers_alone(read):
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    bias, residual = torch.zeros(2, dtype=torch.float64), torch.zeros_like(x)
    grads = []
    for function in (act_pad_for_two, plainly_for_two):
        y = function(x, bias, residual, negative_slope=0.2, padding=1)[read]
        grads.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(*grads)


def test_a_gradient_of_the_input_alone_leaves_out_that_of_the_bias():
    x, bias = torch.randn(1, 2, 4, 3, requires_grad=True), torch.randn(2, requires_grad=True)
    alone = InputAlone()
    with alone.forward():
        y = act_pad(x, bias, negative_slope=0.2, padding=1)
    with alone.backward():
        wanted = torch.autograd.grad(y.sum(), (x, bias), allow_unused=True, retain_graph=True)
    assert wanted[0] is not None and wanted[1] is None
    assert torch.autograd.grad(y.sum(), bias)[0].abs().sum() > 0


def test_a_wrong_residual_is_named():
    for function in (act_pad, act_pad_reference):
        with pytest.raises(
            ValueError, match=r"residual must have x's shape \(2, 3, 4, 4\), got \(2, 3, 6, 6\)"
        ):
            function(torch.zeros(2, 3, 4, 4), None, torch.zeros(2, 3, 6, 6), padding=1)
    with pytest.raises(ValueError, match="padding must be at least 1, got 0"):
        act_pad_for_two(torch.zeros(2, 3, 4, 4), padding=0)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.zeros(4), r"bias must have shape \(C,\) = \(3,\)"),
        (torch.zeros(3).half(), "bias must have x's dtype"),
    ],
)
def test_a_wrong_bias_is_named(bias, message):
    for function in (act_pad, act_pad_reference):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(2, 3, 4, 4), bias, padding=1)


def test_third_derivatives():
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (act_pad, plainly):
        value = function(x, negative_slope=0.2, padding=1).pow(4).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            value = grad.square().sum()
        results.append(grad)
    torch.testing.assert_close(*results)


def test_compiled_is_eager(fresh_compiler):
    def block(x, **given):
        return act_pad(F.relu(x) - 0.5, **given) * 2

    x, grad_y, _ = prepared((2, 8, 6, 5), 1, channels_last=True)
    results = []
    for function in (block, torch.compile(block, fullgraph=True)):
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf, negative_slope=0.2, padding=1)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, grad_y)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "x must have 4 dimensions"),
        ({"x": torch.zeros(0, 3, 4, 4)}, r"x must not be empty, got shape \(0, 3, 4, 4\)"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, "x must have one of the dtypes"),
        ({"padding": 4}, r"padding must be at least 0 and smaller than H and W = \(4, 4\), got 4"),
        ({"padding": 0}, "padding must be at least 1, got 0"),
        ({"padding": 1.5}, "padding must be an int, got 1.5"),
        ({"negative_slope": -0.2}, "negative_slope must be at least 0, got -0.2"),
        ({"negative_slope": torch.nan}, "negative_slope must be at least 0, got nan"),
    ],
)
@pytest.mark.parametrize("function", [act_pad, act_pad_reference])
def test_bad_input_is_named(function, change, message):
    good = {"x": torch.zeros(2, 3, 4, 4), "padding": 1}
    with pytest.raises(ValueError, match=message):
        function(**{**good, **change})
