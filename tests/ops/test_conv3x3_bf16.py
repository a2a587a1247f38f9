"""conv3x3 in bfloat16: both bodies against float64, beside PyTorch's own error; which CPU and call takes which."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.nn import functional as F

from dgnet_fast.models.layers import convolve
from dgnet_fast.ops import conv3x3, conv3x3_reference, registry
from dgnet_fast.ops.native import _C
from tests.ops.test_conv3x3 import CASES, draw, fused, outcome, uses_op

module = importlib.import_module("dgnet_fast.ops.conv3x3")  # the package has the function under this name

BF16 = torch.bfloat16
needs_amx = pytest.mark.skipif(not _C.conv3x3_amx(), reason="this CPU has no AMX, or the build is without it")
BODIES = [pytest.param("cpp", marks=fused), pytest.param("amx", marks=needs_amx)]

#: (B, C, H, W), O, padding, all channels multiples of 32: one place, fewer places than a product takes, rows of no even
#: number of places, two parts and more than there are sums, one sum of many channels, the widest padding.
TILED = [
    ((1, 32, 3, 3), 32, 0),
    ((2, 64, 1, 1), 32, 1),
    ((2, 32, 1, 2), 96, 2),
    ((2, 32, 9, 7), 64, 0),
    ((3, 32, 40, 47), 32, 1),
    ((1, 96, 33, 17), 64, 1),
    ((20, 32, 34, 32), 32, 0),
    ((2, 256, 6, 5), 288, 1),
    ((9, 192, 16, 17), 160, 2),
]


@pytest.fixture
def taken(monkeypatch):
    """Makes conv3x3 take a body, as a CPU would that has it, for small pictures too."""

    def take(body):
        monkeypatch.setenv("DGNET_FAST_IMPL", body)
        monkeypatch.setattr(module, "_AMX", body == "amx")
        monkeypatch.setattr(module, "_FILTERED", (torch.float32, BF16))
        monkeypatch.setattr(module, "AMX_FEWEST", 32)
        monkeypatch.setattr(module, "AMX_WORTH", 0)

    return take


def errors(found, exact):
    """Root mean square errors, relative to that of the exact values."""
    pairs = zip(found, exact, strict=True)
    return [((a.double() - b).square().mean() / b.square().mean()).sqrt().item() for a, b in pairs]


def wide(given):
    return [t.detach().double().requires_grad_() for t in given]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("shape", "out", "padding"), CASES + TILED, ids=str)
def test_error_is_at_most_twice_pytorchs(body, shape, out, padding, taken):
    if body == "amx" and (shape[1] % 32 or out % 32):
        pytest.skip("PyTorch's own")
    taken(body)
    given = draw(shape, out, BF16)
    exact = outcome(conv3x3_reference, wide(given), padding)
    ours, theirs = (outcome(function, given, padding) for function in (conv3x3, conv3x3_reference))
    assert module.serves(*given, padding)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    for name, mine, other, got, like in zip(
        ("y", "x", "weight", "bias"),
        errors(ours, exact),
        errors(theirs, exact),
        ours,
        [None, *given],
        strict=True,
    ):
        assert got.dtype == BF16 and mine <= 2 * other, (name, mine, other)
        assert like is None or got.stride() == like.stride(), name


@pytest.mark.parametrize("body", BODIES)
def test_equal_bits_for_any_number_of_threads(body, taken):
    """Of all that is ours: with AMX the weight's gradient."""
    taken(body)
    # of few channels and many parts: with more threads more of them are under way at once
    cases = CASES[3:6] if body == "cpp" else [TILED[3], TILED[6], TILED[7]]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(
                [outcome(conv3x3, draw(shape, out, BF16), padding) for shape, out, padding in cases]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            ours = slice(3) if body == "cpp" else slice(2, 3)
            assert all(torch.equal(a, b) for a, b in zip(first[ours], second[ours], strict=True))


@pytest.mark.parametrize("body", BODIES)
def test_second_derivatives(body, taken):
    """Those of a penalty on the gradient of the input, as D's, and those to every input."""
    taken(body)

    def penalty(function, given):
        x, weight, bias = given
        y = F.leaky_relu(function(x, weight, bias, padding=1), 0.2)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().mean(), given)

    def mixed(function, given):
        first = torch.autograd.grad(function(*given, padding=2).square().sum(), given, create_graph=True)
        return torch.autograd.grad(sum((g * g.cos()).sum() for g in first), given)

    given = [(0.1 * t.detach()).requires_grad_() for t in draw((2, 32, 9, 7), 64, BF16)]
    for function in (penalty, mixed):
        exact = function(conv3x3_reference, wide(given))
        ours, theirs = (errors(function(f, given), exact) for f in (conv3x3, conv3x3_reference))
        assert all(mine <= 2 * other for mine, other in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("body", BODIES)
def test_only_the_gradients_asked_for(body, taken):
    taken(body)
    x, weight, bias = draw((2, 32, 8, 8), 32, BF16)
    whole = outcome(conv3x3, (x, weight, bias), 1)[1:]
    grad = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(BF16)
    for k, leaf in enumerate((x, weight, bias)):
        given = [t if t is leaf else t.detach() for t in (x, weight, bias)]
        (alone,) = torch.autograd.grad(conv3x3(*given, padding=1), leaf, grad)
        torch.testing.assert_close(alone, whole[k])


@pytest.mark.parametrize("body", BODIES)
def test_opcheck_and_compile(body, taken):
    taken(body)
    given = draw((2, 32, 6, 5), 64, BF16)
    torch.library.opcheck(torch.ops.dgnet_fast.conv3x3.default, (*given, 1))
    grad = conv3x3(*given, padding=1).detach().requires_grad_()
    arguments = (grad, *given[:2], 1, [True, True, True])
    torch.library.opcheck(torch.ops.dgnet_fast.conv3x3_backward.default, arguments)
    compiled = torch.compile(conv3x3, fullgraph=True)
    for got, expected in zip(outcome(compiled, given, 1), outcome(conv3x3, given, 1), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("body", BODIES)
def test_under_autocast_it_computes_in_bfloat16(body, taken):
    """Float32 weights, pictures of either dtype: the results are those of weights cast before, the gradients are float32."""
    taken(body)
    low = draw((2, 32, 9, 7), 64, BF16)
    for x in (low[0], low[0].detach().float().requires_grad_()):
        given = [x, *(t.detach().float().requires_grad_() for t in low[1:])]
        with torch.autocast("cpu", BF16):
            assert uses_op(*given)
            found = conv3x3(*given, padding=1)
            gradients = torch.autograd.grad(found, given, torch.ones_like(found))
            assert [g.dtype for g in gradients] == [x.dtype, torch.float32, torch.float32]
        expected = conv3x3(*low, padding=1)
        assert torch.equal(found, expected)
        exact = torch.autograd.grad(expected, low, torch.ones_like(expected))
        assert all(torch.equal(a.float(), b.float()) for a, b in zip(gradients, exact, strict=True))
    with torch.autocast("cpu", torch.float16):
        assert not uses_op(*low) and conv3x3(*low).dtype == torch.float16


@fused
def test_which_calls_a_cpu_without_amx_takes(taken):
    taken("cpp")
    x, weight, bias = draw((2, 16, 8, 8), 24, BF16)
    assert uses_op(x, weight, bias) and uses_op(x, weight.detach())
    assert not uses_op(x.contiguous(), weight)
    assert not uses_op(x, weight, padding=3)
    assert not uses_op(*draw((2, 12, 8, 8), 16, BF16)[:2])
    assert module.saves_products(x, weight, bias, 1)
    # the discriminator's, which is differentiated twice
    layer = torch.nn.Conv2d(16, 24, 3, dtype=BF16)
    with torch.profiler.profile() as recorded:
        convolve(layer, x, twice=True)
    assert any(event.key == "dgnet_fast::conv3x3" for event in recorded.key_averages())


def test_which_calls_a_cpu_with_amx_takes(monkeypatch):
    """Those of enough work whose weight's gradient the body can be asked for; in float32 it is as any other CPU."""
    monkeypatch.setattr(module, "_AMX", True)

    def serves(shape, out, padding=0, change=lambda x, weight, bias: (x, weight, bias)):
        order = {"dtype": BF16, "memory_format": torch.channels_last}
        x, bias = torch.empty(shape, **order), torch.empty(out, dtype=BF16)
        weight = torch.empty(out, shape[1], 3, 3, dtype=BF16, requires_grad=True)
        given = change(x, weight, bias)
        assert not module.saves_products(*given, padding)
        return module.serves(*given, padding)

    large = (8, 128, 66, 34)
    assert serves(large, 128) and serves(large, 96, 2) and serves((4, 256, 16, 8), 256, 1)
    assert not serves((4, 64, 66, 34), 64) and not serves((48, 32, 258, 130), 32)  # not worth it
    assert not serves(large, 72)
    assert not serves(large, 128, 3)
    assert not serves(large, 128, 0, lambda x, weight, bias: (x.contiguous(), weight, bias))
    assert not serves(large, 128, 0, lambda x, weight, bias: (x, weight.detach(), bias))
    with torch.no_grad():
        assert not serves(large, 128)
    assert module.serves(*draw((2, 16, 8, 8), 24), 1) == (_C.conv3x3_lanes() >= 8)


def test_a_build_or_cpu_without_amx_is_not_given_its_body(monkeypatch):
    """Neither unasked nor by name; where PyTorch has AMX all the same, its convolution serves."""
    for cached in (registry._choose, registry._implementation):
        cached.cache_clear()
    monkeypatch.setattr(registry._C, "conv3x3_amx", lambda: False)
    try:
        expected = "cpp" if _C.conv3x3_lanes() >= 8 and not registry.cpu_multiplies_bf16() else "aten"
        assert registry.choose("conv3x3", "cpu", BF16).name == expected
        monkeypatch.setenv("DGNET_FAST_IMPL", "amx")
        with pytest.raises(ValueError, match="DGNET_FAST_IMPL=amx: this CPU has no AMX"):
            registry.choose("conv3x3", "cpu", BF16)
    finally:
        for cached in (registry._choose, registry._implementation):
            cached.cache_clear()


@fused
@pytest.mark.parametrize(("amx", "avx512"), [(False, False), (True, False), (False, True)])
def test_filtering_in_bfloat16_is_for_cpus_that_do_not_multiply_it(monkeypatch, amx, avx512):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert registry._filtered() == ((torch.float32,) if amx or avx512 else (torch.float32, BF16))


@needs_amx
def test_a_cpu_with_amx_is_given_its_body(monkeypatch):
    monkeypatch.delenv("DGNET_FAST_IMPL", raising=False)
    assert registry.choose("conv3x3", "cpu", BF16).name == "amx"
    assert registry.choose("conv3x3", "cpu", torch.float32).name == "cpp"


@fused
def test_rounding_is_to_nearest_and_what_is_not_finite_stays_so(taken):
    """Of a picture that one tap copies: NaN of any bits, infinities, what lies between two bfloat16 values."""
    taken("cpp")
    x = torch.zeros(1, 8, 3, 3, dtype=BF16).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(8, 8, 3, 3, dtype=BF16)
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.3895e38, 1.0, 1.00390625, 0.0, -0.0])
    y = conv3x3(x, weight, values.to(BF16), padding=1)
    assert torch.equal(y[0, :, 0, 0].isnan(), values.isnan())
    assert torch.equal(y[0, 1:, 1, 1], values.to(BF16)[1:])
