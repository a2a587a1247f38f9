"""adain_act with reflect padding on the CPU: the C++ body and the reference against float64 and F.pad."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.cases import AdainActCase, adain_act_inputs
from dgnet_fast.ops import adain_act, adain_act_reference
from dgnet_fast.ops.padding import interior

#: Shape and padding: every line mirrored on both sides, odd sizes, several blocks of channels, batch 1.
CASES = [
    ((2, 5, 7, 3), 2),
    ((1, 33, 10, 12), 9),
    ((3, 70, 5, 6), 1),
    ((1, 1, 4, 9), 3),
    ((2, 32, 20, 70), 6),
    ((2, 40, 2, 2), 1),
]
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])


def prepared(
    shape, padding, slope, *, adaptive=True, residual=True, dtype=torch.float32, channels_last=False
):
    """Inputs, and a padded gradient that is zero where rounding may decide the activation's side."""
    case = AdainActCase("test", shape, adaptive, slope, residual)
    inputs = adain_act_inputs(case, dtype=dtype, channels_last=channels_last)
    x, scale, shift, _ = (None if t is None else t.double() for t in inputs)
    far = adain_act_reference(x, scale, shift, padding=padding).abs() > 1e-3
    generator = torch.Generator().manual_seed(7)
    return inputs, (torch.randn(far.shape, generator=generator) * far).to(dtype)


def run(function, inputs, slope, padding, grad_y, dtype=None):
    """y and the gradients of all given inputs, computed in dtype."""
    leaves = [t if t is None else t.to(dtype or t.dtype).clone().requires_grad_() for t in inputs]
    y = function(*leaves, negative_slope=slope, padding=padding)
    given = [leaf for leaf in leaves if leaf is not None]
    return [y.detach(), *torch.autograd.grad(y, given, grad_y.to(y.dtype))]


@LAYOUTS
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize(("shape", "padding"), CASES, ids=str)
def test_float32_against_float64(shape, padding, residual, channels_last):
    slope = 0.2 if residual else None
    inputs, grad_y = prepared(shape, padding, slope, residual=residual, channels_last=channels_last)
    exact = run(adain_act_reference, inputs, slope, padding, grad_y, torch.float64)
    for result, expected in zip(run(adain_act, inputs, slope, padding, grad_y), exact, strict=True):
        scale = 1 + expected.abs().max().item()
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-6 * scale)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_error_at_most_twice_pytorchs(dtype, channels_last):
    inputs, grad_y = prepared((2, 40, 32, 20), 2, 0.2, dtype=dtype, channels_last=channels_last)
    exact = run(adain_act_reference, inputs, 0.2, 2, grad_y, torch.float64)
    ours = run(adain_act, inputs, 0.2, 2, grad_y)
    theirs = run(adain_act_reference, inputs, 0.2, 2, grad_y)
    for mine, pytorch, expected in zip(ours, theirs, exact, strict=True):
        error, allowed = ((r.double() - expected).abs().max() for r in (mine, pytorch))
        assert error <= 2 * allowed + 1e-5, (error, allowed)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "padding"), CASES, ids=str)
def test_result_is_the_plain_result_padded(shape, padding, dtype, channels_last):
    (x, scale, shift, residual), _ = prepared(shape, padding, 0.2, dtype=dtype, channels_last=channels_last)
    plain = adain_act(x, scale, shift, residual, negative_slope=0.2)
    y = adain_act(x, scale, shift, residual, negative_slope=0.2, padding=padding)
    torch.testing.assert_close(y, F.pad(plain, (padding,) * 4, mode="reflect"), rtol=1e-6, atol=1e-6)
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=order) and y.dtype == dtype


@pytest.mark.parametrize("padding", [0, 2])
@LAYOUTS
def test_residual_from_within_a_padded_buffer(channels_last, padding):
    inputs, grad_y = prepared((2, 40, 6, 9), padding, None, channels_last=channels_last)
    order = torch.channels_last if channels_last else torch.contiguous_format
    buffer = F.pad(inputs[3], (3, 3, 1, 1)).contiguous(memory_format=order)
    within = buffer[:, :, 1:-1, 3:-3]
    expected = run(adain_act, inputs, None, padding, grad_y)
    leaves = [t.clone().requires_grad_() for t in inputs[:3]]
    within.requires_grad_()
    y = adain_act(*leaves, within, padding=padding)
    results = [y.detach(), *torch.autograd.grad(y, [*leaves, within], grad_y)]
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-6, atol=1e-6)
    # In place: what lies around the picture has no part in it, NaN or not.
    buffer[:, :, 0] = torch.nan
    assert torch.equal(adain_act(*leaves, within.detach(), padding=padding), y)


@LAYOUTS
def test_interior_is_the_slice_and_keeps_the_order(channels_last):
    order = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.randn(2, 3, 7, 6, dtype=torch.float64).contiguous(memory_format=order).requires_grad_()
    assert torch.equal(interior(y, 2), y[:, :, 2:-2, 2:-2]) and interior(y, 0) is y
    assert torch.autograd.gradgradcheck(lambda y: interior(y, 2).square(), (y,))
    weight = torch.randn(2, 3, 3, 2, dtype=torch.float64).contiguous(memory_format=order)
    (grad,) = torch.autograd.grad(interior(y, 2), y, weight)
    assert torch.equal(grad, F.pad(weight, (2, 2, 2, 2))) and grad.is_contiguous(memory_format=order)


@LAYOUTS
def test_not_finite_values_stay_in_their_plane(channels_last):
    (x, scale, shift, residual), _ = prepared((2, 5, 6, 7), 1, 0.2, channels_last=channels_last)
    x[0, 1, 2, 3], x[1, 4, 0, 0], residual[1, 2, 1, 1] = torch.nan, torch.inf, -torch.inf
    y = adain_act(x, scale, shift, residual, negative_slope=0.2, padding=1)
    expected = adain_act_reference(x, scale, shift, residual, negative_slope=0.2, padding=1)
    assert expected.isnan().any() and expected.isinf().any() and expected.isfinite().any()
    torch.testing.assert_close(y, expected, equal_nan=True)


def test_gradient_of_the_residual_alone():
    (x, scale, shift, residual), grad_y = prepared((2, 3, 5, 6), 2, 0.2)
    residual = residual.double().requires_grad_()
    (expected,) = torch.autograd.grad(F.pad(residual, (2,) * 4, mode="reflect"), residual, grad_y.double())
    leaf = residual.float().detach().requires_grad_()
    (grad,) = torch.autograd.grad(adain_act(x, scale, shift, leaf, padding=2), leaf, grad_y)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", [adain_act, adain_act_reference])
def test_gradcheck_in_float64(function):
    inputs, _ = prepared((2, 2, 4, 3), 2, 0.3, dtype=torch.float64)
    leaves = [t.double().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda *given: function(*given, negative_slope=0.3, padding=2), leaves)


@LAYOUTS
def test_opcheck(channels_last):
    inputs, grad_y = prepared((2, 3, 4, 5), 2, 0.2, channels_last=channels_last)
    forward, backward = torch.ops.dgnet_fast.adain_act, torch.ops.dgnet_fast.adain_act_backward
    _, mean, rstd = forward(*inputs, 0.2, 1e-5, 2)
    for needs_residual in (True, False):
        given = (grad_y, *inputs[:3], mean, rstd, 0.2, 2, needs_residual)
        torch.library.opcheck(backward.default, given)
    leaves = [t.requires_grad_() for t in inputs]
    torch.library.opcheck(forward.default, (*leaves, 0.2, 1e-5, 2))


def test_compiled_is_eager(fresh_compiler):
    inputs, grad_y = prepared((2, 8, 6, 5), 1, 0.2, channels_last=True)

    def block(x, scale, shift, residual, **given):
        padded = adain_act(x, scale, shift, padding=2)
        return adain_act(x + residual, scale, shift, interior(padded, 2), **given)

    compiled = torch.compile(block, fullgraph=True)
    eager, graph = (run(function, inputs, 0.2, 1, grad_y) for function in (block, compiled))
    for mine, other in zip(eager, graph, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
