"""batch_norm_act: the C++ body against the reference in float64, the reference against nn.BatchNorm2d."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dgnet_fast.ops import batch_norm_act, batch_norm_act_reference
from dgnet_fast.ops.batch_norm_act import batch_norm_act_for_two

ORDERS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
#: Shape, groups, residual and ReLU: more channels than a block of sums has, several chunks of a group, odd sizes.
CASES = [
    ((2, 70, 9, 5), 2, True, True),
    ((8, 64, 16, 8), 1, False, True),
    ((6, 1, 4, 3), 3, True, False),
    ((2, 3, 1, 2), 1, False, False),
]


def inputs(shape, dtype=torch.float64, order="nchw", residual=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x = draw(*shape) * 2 + 3 * draw(channels)[:, None, None]
    given = [x, draw(channels), draw(channels)] + ([draw(*shape)] if residual else [])
    made = [t.to(dtype) if t.ndim == 4 else t.to(torch.promote_types(dtype, torch.float32)) for t in given]
    return [t.contiguous(memory_format=ORDERS[order]) if t.ndim == 4 else t for t in made]


def plain(x, weight, bias, residual=None, *, groups, relu):
    """nn.BatchNorm2d's training pass, group by group."""
    y = torch.cat([F.batch_norm(part, None, None, weight, bias, True) for part in x.chunk(groups)])
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def outcome(function, given, mask=1, **options):
    """y and the gradients of everything given, for a fixed gradient of y, times `mask`."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in given]
    y = function(*leaves, **options)
    y = y[0] if isinstance(y, tuple) else y
    generator = torch.Generator().manual_seed(7)
    grad = (torch.randn(y.shape, generator=generator, dtype=torch.float64) * mask).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_reference_is_batch_norm(relu, residual):
    given = inputs((6, 5, 4, 3), residual=residual)
    ours = outcome(batch_norm_act_reference, given, groups=3, relu=relu)
    for got, expected in zip(ours, outcome(plain, given, groups=3, relu=relu), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_gradcheck_of_the_reference():
    given = [t.requires_grad_() for t in inputs((4, 2, 2, 3))]
    assert torch.autograd.gradcheck(lambda *a: batch_norm_act_reference(*a, groups=2)[0], given)
    assert torch.autograd.gradcheck(lambda *a: batch_norm_act(*a, groups=2)[0], given)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("shape", "groups", "residual", "relu"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cpp_against_float64(monkeypatch, dtype, shape, groups, residual, relu, order):
    given = inputs(shape, dtype, order, residual)
    options = {"groups": groups, "relu": relu}
    wide = [t.double() for t in given]
    # no gradient where rounding decides the ReLU
    options["mask"] = batch_norm_act_reference(*wide, groups=groups, relu=False)[0].abs() > 1e-2
    exact = outcome(batch_norm_act_reference, wide, **options)
    eager = outcome(batch_norm_act_reference, given, **options)
    monkeypatch.setenv("DGNET_FAST_IMPL", "cpp")
    ours = outcome(batch_norm_act, given, **options)
    assert ours[0].is_contiguous(memory_format=ORDERS[order])
    for name, got, wanted, theirs in zip(
        "y x weight bias residual".split(), ours, exact, eager, strict=False
    ):
        scale = wanted.abs().max().clamp_min(1e-6)
        error, reference_error = ((t.double() - wanted).abs().max() / scale for t in (got, theirs))
        room = 4 * torch.finfo(torch.float32).eps * max(1.0, shape[0] * shape[2] * shape[3]) ** 0.5
        assert error <= 2 * reference_error + room, (name, float(error), float(reference_error))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mean, deviation", [(0, 1), (100, 1e-2)])
def test_statistics(mean, deviation, order):
    x, weight, bias = inputs((6, 3, 4, 5), torch.float32, order, residual=False)
    x = (x - x.mean()) * deviation + mean
    _, means, var = batch_norm_act(x, weight, bias, groups=3)
    parts = x.double().unflatten(0, (3, -1))
    torch.testing.assert_close(means.double(), parts.mean(dim=(1, 3, 4)), rtol=1e-6, atol=1e-6)
    expected = parts.var(dim=(1, 3, 4), correction=0)
    torch.testing.assert_close(var.double(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_equal_bits_for_any_number_of_threads(order):
    given = inputs((8, 40, 16, 8), torch.float32, order)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outcome(batch_norm_act, given, groups=4))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck_and_compile():
    given = [t.requires_grad_() for t in inputs((4, 3, 4, 3), torch.float32)]
    torch.library.opcheck(torch.ops.dgnet_fast.batch_norm_act.default, (*given, 2, True, 1e-5))
    compiled = torch.compile(batch_norm_act, fullgraph=True)
    for got, expected in zip(
        outcome(compiled, given, groups=2), outcome(batch_norm_act, given, groups=2), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_not_finite_values_pass():
    x, weight, bias = inputs((4, 2, 3, 3), torch.float32, residual=False)
    x[0, 0, 0, 0] = float("nan")
    y, _, _ = batch_norm_act(x, weight, bias, groups=2)
    assert y[:2, 0].isnan().all() and y[2:].isfinite().all() and y[:, 1].isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 3)}, "4 dimensions"),
        ({"x": torch.zeros(0, 3, 2, 2)}, "empty"),
        ({"x": torch.zeros(4, 3, 2, 2, dtype=torch.int32)}, "int32"),
        ({"weight": torch.zeros(4)}, "weight must have shape"),
        ({"bias": torch.zeros(3, dtype=torch.float16)}, "bias must have"),
        ({"groups": 3}, "divide the batch of 4, got 3"),
        ({"groups": 0}, "got 0"),
        ({"residual": torch.zeros(4, 3, 2, 1)}, "residual must have"),
    ],
)
def test_bad_input(change, message):
    given = {"x": torch.zeros(4, 3, 2, 2), "weight": torch.ones(3), "bias": torch.zeros(3), "groups": 2}
    with pytest.raises(ValueError, match=message):
        batch_norm_act(**(given | change))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("shape", "groups", "residual", "relu"), CASES, ids=str)
def test_gradients_of_two_readers_are_added(shape, groups, residual, relu, dtype, order):
    given = inputs(shape, dtype, order, residual)
    leaves = [t.requires_grad_() for t in given]
    y, again, mean, var = batch_norm_act_for_two(*leaves, groups=groups, relu=relu)
    expected = batch_norm_act(*leaves, groups=groups, relu=relu)
    assert y.data_ptr() == again.data_ptr()
    for one, other in zip((y, mean, var), expected, strict=True):
        assert torch.equal(one, other)
    # multiples of 1/8, whose sum bfloat16 holds
    grads = [
        torch.randint(-8, 9, y.shape, generator=torch.Generator().manual_seed(k)).to(dtype) / 8
        for k in (1, 2)
    ]
    ours = torch.autograd.grad((y, again), leaves, grads, retain_graph=True)
    plain = torch.autograd.grad(expected[0], leaves, grads[0] + grads[1], retain_graph=True)
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other)
    for k in (0, 1):  # one reader that wants no gradient
        (one,) = torch.autograd.grad((y, again)[k], leaves[0], grads[0], retain_graph=True)
        (other,) = torch.autograd.grad(expected[0], leaves[0], grads[0], retain_graph=True)
        assert torch.equal(one, other)


def test_double_backward_raises():
    x, weight, bias = (t.requires_grad_() for t in inputs((4, 2, 3, 3), torch.float32, residual=False))
    (grad,) = torch.autograd.grad(batch_norm_act(x, weight, bias)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="batch_norm_act_reference"):
        grad.sum().backward()
