"""conv3x3: the C++ body against F.conv2d in float64, in all derivatives; where it is not used; its errors."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch.nn import functional as F

from dgnet_fast.config import DiscriminatorConfig
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.models.layers import ResidualBlock
from dgnet_fast.models.resnet import Bottleneck
from dgnet_fast.ops import conv3x3, conv3x3_reference
from dgnet_fast.ops.conv3x3 import cpp
from dgnet_fast.ops.input_alone import InputAlone
from dgnet_fast.ops.native import _C
from dgnet_fast.ops.upsample_conv import upsample_conv
from dgnet_fast.training import losses

#: (B, C, H, W), O, padding: sizes that no patch divides, one patch or less, channels that fill no panel, more patches
#: than one block or one sum takes, taps that all threads share (over 8 MiB of matrices), and those in two parts.
CASES = [
    ((2, 16, 9, 7), 24, 0),
    ((1, 8, 3, 3), 8, 0),
    ((2, 40, 1, 1), 16, 1),
    ((3, 32, 16, 8), 32, 1),
    ((1, 24, 33, 17), 56, 1),
    ((2, 8, 5, 6), 16, 2),
    ((3, 8, 40, 47), 8, 1),
    ((3, 256, 6, 5), 264, 1),
    ((6, 256, 24, 20), 256, 1),
]
BOUND = 1e-5  # of the largest value; up to 3.5e-6 seen

fused = pytest.mark.skipif(_C.conv3x3_lanes() < 8, reason="built without AVX and FMA: conv3x3 is F.conv2d")


def draw(shape, out, dtype=torch.float32, seed=0):
    """x in channels_last order, weight and bias, all with gradients asked for."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (shape, (out, shape[1], 3, 3), (out,))
    x, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes
    )
    return [
        x.contiguous(memory_format=torch.channels_last).requires_grad_(),
        weight.requires_grad_(),
        bias.requires_grad_(),
    ]


def outcome(function, given, padding):
    """y and all gradients for a fixed gradient of y."""
    y = function(*given, padding=padding)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, given, grad)]


def uses_op(x, weight, bias=None, padding=1):
    with torch.profiler.profile() as recorded:
        conv3x3(x, weight, bias, padding=padding)
    return any(event.key == "dgnet_fast::conv3x3" for event in recorded.key_averages())


@fused
@pytest.mark.parametrize(("shape", "out", "padding"), CASES, ids=str)
def test_against_float64(shape, out, padding):
    given = draw(shape, out)
    exact = outcome(conv3x3_reference, [t.detach().double().requires_grad_() for t in given], padding)
    ours = outcome(conv3x3, given, padding)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    for name, got, wanted in zip(("y", "x", "weight", "bias"), ours, exact, strict=True):
        assert got.shape == wanted.shape and got.dtype == torch.float32
        error = (got.double() - wanted).abs().max() / wanted.abs().max()
        assert error <= BOUND, (name, float(error))


@fused
def test_error_is_a_small_multiple_of_pytorchs():
    x, weight, _ = draw((4, 128, 16, 8), 128)
    exact = F.conv2d(x.double(), weight.double())
    ours, theirs = (
        (f(x, weight).double() - exact).square().mean().sqrt() for f in (conv3x3, conv3x3_reference)
    )
    assert ours <= 4 * theirs  # 2.5 to 2.7 times seen, over 32 to 512 channels


@fused
def test_equal_bits_for_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([outcome(conv3x3, draw(shape, out), padding) for shape, out, padding in CASES])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            # the bias's gradient is a sum of PyTorch's own
            assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))


@fused
def test_second_derivatives():
    """Of a penalty on the input's gradient through two layers, as D's."""

    def penalty(function, given):
        x, weight, bias = given
        y = F.leaky_relu(function(x, weight, bias, padding=1), 0.2)
        y = function(y, weight.transpose(0, 1), padding=0)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().mean(), given)

    given = draw((2, 16, 9, 7), 24)
    exact = penalty(conv3x3_reference, [t.detach().double().requires_grad_() for t in given])
    for got, wanted in zip(penalty(conv3x3, given), exact, strict=True):
        assert (got.double() - wanted).abs().max() <= 5 * BOUND * wanted.abs().max()


@fused
def test_every_second_derivative():
    """Also those to the gradients of weight and bias, over the widest padding."""

    def mixed(function, given):
        y = function(*given, padding=2)
        first = torch.autograd.grad(y.square().sum(), given, create_graph=True)
        return torch.autograd.grad(sum((g * g.cos()).sum() for g in first), given)

    given = [(0.3 * t.detach()).requires_grad_() for t in draw((2, 8, 5, 6), 16)]
    exact = mixed(conv3x3_reference, [t.detach().double().requires_grad_() for t in given])
    for got, wanted in zip(mixed(conv3x3, given), exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def needed_of(calls, monkeypatch):
    """What is asked of the backward body in `calls`."""
    seen, backward = [], cpp.backward

    def watched(a):
        seen.append(list(a.needed))
        backward(a)

    monkeypatch.setattr(cpp, "backward", watched)
    calls()
    return seen


@fused
def test_only_the_gradients_asked_for(monkeypatch):
    x, weight, bias = draw((2, 16, 8, 8), 16)
    asked = [
        ((x.detach(), weight, bias), (weight, bias), [False, True, True]),
        ((x, weight.detach(), None), (x,), [True, False, False]),
    ]
    for given, leaves, needed in asked:
        exact = torch.autograd.grad(conv3x3_reference(*given).square().sum(), leaves)

        def calls(given=given, leaves=leaves, exact=exact):
            for got, wanted in zip(
                torch.autograd.grad(conv3x3(*given).square().sum(), leaves), exact, strict=True
            ):
                assert (got - wanted).abs().max() <= 2 * BOUND * wanted.abs().max()

        assert needed_of(calls, monkeypatch) == [needed]

    def penalty():
        alone = InputAlone()
        with alone.forward():
            y = conv3x3(x, weight, bias)
        with alone.backward():
            (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    seen = needed_of(penalty, monkeypatch)
    assert seen[0] == [True, False, False]  # and then both factors of that gradient, and y's own
    assert all(sum(needed) == 1 or needed == [True, True, True] for needed in seen[1:])


@fused
def test_any_order_of_weight_gradient_and_bias():
    """Strided and expanded ones give the bits of dense ones."""
    x, weight, bias = (t.detach() for t in draw((2, 16, 8, 8), 16))
    wide = torch.zeros(16, 16, 3, 6)[..., ::2].copy_(weight)
    twice = bias.repeat_interleave(2)[::2]
    other = weight.contiguous(memory_format=torch.channels_last)
    outcomes = []
    for w, b in ((weight, bias), (wide, twice), (other, bias)):
        leaves = [t.detach().requires_grad_() for t in (x, w, b)]
        outcomes.append(torch.autograd.grad(conv3x3(*leaves, padding=1).sum(), leaves))
    for more in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], more, strict=True))
    assert torch.equal(
        torch.ops.dgnet_fast.conv3x3(x.contiguous(), weight, bias, 1), conv3x3(x, weight, bias, padding=1)
    )


@fused
def test_networks_that_use_it_agree_with_float64():
    """E_s's and D's blocks, a bottleneck, the upsampling and D's penalty, in the memory order of training."""
    generator = torch.Generator().manual_seed(0)
    residual = ResidualBlock(16, norm="in", activ="lrelu", pad_type="reflect")
    bottleneck = Bottleneck(32, 16, 1)
    upsampling = torch.nn.Conv2d(16, 8, 5)
    x = torch.randn(2, 16, 12, 8, generator=generator)
    discriminator = Discriminator(DiscriminatorConfig(dim=8, n_res=1, num_scales=2))
    real = torch.randn(2, 3, 32, 16, generator=generator)

    def all_of(dtype):
        order = {"dtype": dtype, "memory_format": torch.channels_last}
        nets = [copy.deepcopy(net).to(**order) for net in (residual, bottleneck, upsampling, discriminator)]
        leaf = x.to(**order).requires_grad_()
        results = [
            nets[0](leaf),
            nets[1](torch.cat([leaf, leaf], dim=1), BatchNormMode(1, "batch")),
            upsample_conv(leaf, nets[2].weight, nets[2].bias),
            *losses.real_scores_and_penalty(nets[3], real.to(**order))[0],
            losses.real_scores_and_penalty(nets[3], real.to(**order))[1],
        ]
        total = sum(result.square().mean() for result in results)
        parameters = [p for net in nets for p in net.parameters()]
        return [
            *results,
            *torch.autograd.grad(total, [leaf, *parameters], materialize_grads=True, allow_unused=True),
        ]

    for got, wanted in zip(all_of(torch.float32), all_of(torch.float64), strict=True):
        torch.testing.assert_close(
            got.double(), wanted, rtol=1e-3, atol=1e-4 * max(wanted.abs().max().item(), 1e-3)
        )


@fused
def test_opcheck_and_compile():
    given = draw((2, 8, 6, 5), 16)
    torch.library.opcheck(torch.ops.dgnet_fast.conv3x3.default, (*given, 1))
    grad = conv3x3(*given, padding=1).detach().requires_grad_()
    needed = [True, True, True]
    torch.library.opcheck(torch.ops.dgnet_fast.conv3x3_backward.default, (grad, *given[:2], 1, needed))
    compiled = torch.compile(conv3x3, fullgraph=True)
    for got, expected in zip(outcome(compiled, given, 1), outcome(conv3x3, given, 1), strict=True):
        torch.testing.assert_close(got, expected)


@fused
@pytest.mark.parametrize("amx", [False, True])
def test_served_where_it_is_faster_and_nowhere_else(amx, monkeypatch):
    """On a CPU with bf16 arithmetic, with AMX and without."""
    module = sys.modules["dgnet_fast.ops.conv3x3"]
    monkeypatch.setattr(module, "_AMX", amx)
    monkeypatch.setattr(module, "_FILTERED", (torch.float32, torch.bfloat16))
    x, weight, bias = draw((2, 16, 8, 8), 16)
    assert uses_op(x, weight, bias)
    assert not uses_op(x.contiguous(), weight)
    assert not uses_op(x.double(), weight.double())
    assert uses_op(x.bfloat16(), weight.bfloat16()) != amx  # with AMX so small a call is not worth it
    assert not uses_op(x, weight, padding=3)
    assert not uses_op(*draw((2, 12, 8, 8), 16)[:2])
    assert not uses_op(*draw((2, 16, 8, 8), 3)[:2])
    with torch.autocast("cpu", torch.bfloat16):
        assert uses_op(x, weight) != amx and conv3x3(x, weight).dtype == torch.bfloat16


def test_forced_reference(monkeypatch):
    monkeypatch.setenv("DGNET_FAST_IMPL", "reference")
    given = draw((2, 16, 9, 7), 24)
    for got, expected in zip(outcome(conv3x3, given, 1), outcome(conv3x3_reference, given, 1), strict=True):
        assert torch.equal(got, expected)


@fused
def test_what_is_not_finite_stays_so_and_near():
    x, weight, _ = (t.detach() for t in draw((1, 8, 16, 16), 8))
    x[0, 0, 5, 5] = float("nan")
    y, expected = conv3x3(x, weight, padding=1), F.conv2d(x, weight, padding=1)
    assert y.isfinite().logical_not()[~expected.isfinite()].all()
    assert y[:, :, 12:].isfinite().all() and y[..., 12:].isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 8)}, "4 dimensions"),
        ({"x": torch.zeros(0, 8, 4, 4)}, "empty"),
        ({"x": torch.zeros(2, 8, 4, 4, dtype=torch.int32)}, "int32"),
        ({"weight": torch.zeros(8, 8, 5, 5)}, r"weight must have shape \(O, 8, 3, 3\), got \(8, 8, 5, 5\)"),
        ({"weight": torch.zeros(8, 4, 3, 3)}, r"\(8, 4, 3, 3\)"),
        ({"bias": torch.zeros(4)}, r"bias must have shape \(O,\) = \(8,\), got \(4,\)"),
        ({"padding": -1}, "padding is -1"),
        ({"x": torch.zeros(2, 8, 2, 4)}, "at least 3"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {
        "x": torch.zeros(2, 8, 4, 4),
        "weight": torch.zeros(8, 8, 3, 3),
        "bias": None,
        "padding": 0,
    } | change
    x, weight, bias, padding = given.values()
    with pytest.raises(ValueError, match=message):
        conv3x3(x, weight, bias, padding=padding)
