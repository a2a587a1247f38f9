"""`upsample_border` and `upsample_weights`: what `upsample_conv` takes on CUDA instead of PyTorch's slices and copies."""

from __future__ import annotations

import pytest
import torch

from dgnet_fast.ops import upsample_conv as upsampling
from dgnet_fast.ops.upsample_border import reference as border_reference
from dgnet_fast.ops.upsample_border import upsample_border
from dgnet_fast.ops.upsample_conv import upsample_conv, upsample_conv_phases, upsample_conv_reference
from dgnet_fast.ops.upsample_weights import reference as weights_reference
from dgnet_fast.ops.upsample_weights import upsample_weights
from tests.ops.test_upsample_conv import SHAPES, case

BORDERS = [(2, 3, 5, 6), (1, 2, 2, 2), (2, 1, 3, 2), (1, 9, 4, 3), (2, 4, 2, 7)]
FILTERS = [(3, 4, 5, 5), (1, 1, 5, 5), (2, 7, 5, 5)]
DTYPES = (torch.float32, torch.float16)
ORDERS = pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])


def draw(shape, dtype, order):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=order)


def differences(op, reference, given, *options):
    """The largest differences of results and gradient from the reference's, relative to 1."""
    given = given.detach().requires_grad_()
    ours, exact = op(given, *options), reference.forward(given.detach().double(), *options)
    grads = [draw(t.shape, t.dtype, torch.contiguous_format).to(t.device) for t in ours]
    (grad,) = torch.autograd.grad(ours, given, grads)
    dtypes = [torch.float64] if options else []
    expected = reference.backward(*(g.double() for g in grads), *dtypes)
    pairs = [*zip(ours, exact, strict=True), (grad, expected)]
    for mine, other in pairs:
        assert mine.shape == other.shape
    return [((a.detach().double() - b).abs() / (b.abs() + 1)).max().item() for a, b in pairs]


@ORDERS
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(order, dtype):
    x = draw(BORDERS[0], dtype, order).requires_grad_()
    torch.library.opcheck(torch.ops.dgnet_fast.upsample_border.default, (x,))
    weight = draw(FILTERS[0], torch.float32, order).requires_grad_()
    torch.library.opcheck(torch.ops.dgnet_fast.upsample_weights.default, (weight, dtype))


@ORDERS
@pytest.mark.parametrize("shape", SHAPES)
def test_upsampling_by_the_ops_is_upsampling(monkeypatch, shape, order):
    monkeypatch.setattr(upsampling, "in_one_pass", lambda _: True)
    x, weight, bias = case(*shape)
    x, weight = (t.detach().contiguous(memory_format=order).requires_grad_() for t in (x, weight))
    ours, plain = upsample_conv(x, weight, bias), upsample_conv_reference(x, weight, bias)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    grad = draw(plain.shape, torch.float64, torch.contiguous_format)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, bias), grad) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert a.ndim < 4 or a.is_contiguous(memory_format=order)


def test_lines_of_the_phases_get_their_gradients_in_channels_last(monkeypatch):
    monkeypatch.setattr(upsampling, "in_one_pass", lambda _: True)
    seen = []
    plain = torch.nn.functional.conv2d

    def watched(x, weight, bias=None, **options):
        made = plain(x, weight, bias, **options)
        if 1 in weight.shape[2:]:
            made.register_hook(
                lambda grad: seen.append(grad.is_contiguous(memory_format=torch.channels_last))
            )
        return made

    monkeypatch.setattr(upsampling.F, "conv2d", watched)
    x, weight, _ = (t.detach().float() for t in case(2, 3, 4, 5, 6))
    small = upsample_conv_phases(x.contiguous(memory_format=torch.channels_last).requires_grad_(), weight)
    small.square().sum().backward()
    assert seen == [True] * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upsample_border(torch.zeros(1, 1, 1, 4)), r"H and W of at least 2, got shape \(1, 1, 1, 4\)"),
        (lambda: upsample_border(torch.zeros(3, 4)), r"must have 4 dimensions .* got shape \(3, 4\)"),
        (lambda: upsample_weights(torch.zeros(2, 2, 3, 3), torch.float32), r"\(O, C, 5, 5\), got \(2, 2, 3, 3\)"),
        (lambda: upsample_weights(torch.zeros(2, 2, 5, 5), torch.int64), r"dtype must be one of .* got torch.int64"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_double_backward_raises():
    x = draw(BORDERS[0], torch.float32, torch.contiguous_format).requires_grad_()
    (grad,) = torch.autograd.grad(upsample_border(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="upsample_border is differentiable once"):
        grad.sum().backward()


# ---- the Triton bodies


def test_values_under_the_interpreter():
    pytest.importorskip("triton")
    from tests.ops.interpreted import interpreted

    found = interpreted("interpret_upsample.py")
    assert len(found) == 2 * 2 * (len(BORDERS) + len(FILTERS))
    for name, errors in found.items():
        assert max(errors) < (2e-6 if "float32" in name else 2e-3), (name, errors)


@pytest.mark.parametrize("capability", (80, 90))
@ORDERS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_launches_compile_ahead_without_spills(monkeypatch, dtype, order, capability):
    pytest.importorskip("triton")
    from dgnet_fast.kernels import upsample_border as border_kernels
    from dgnet_fast.kernels import upsample_weights as weight_kernels

    from tests.ops.ahead import assert_lean, launch, record

    launches = record(monkeypatch, border_kernels, ["forward_tile", "backward_tile"])
    x = torch.empty(48, 128, 128, 64, dtype=dtype, device="meta").to(memory_format=order)
    made = vars(launch("upsample_border", "forward", x=x))
    launch(
        "upsample_border",
        "backward",
        **{name: made[name] for name in ("padded", "above", "below", "before", "behind")},
    )
    assert len(launches) == 2
    assert_lean(launches, capability, 128)
    launches = record(monkeypatch, weight_kernels, ["forward_pairs", "backward_pairs"])
    weight = torch.empty(64, 128, 5, 5, device="meta").to(memory_format=order)
    made = vars(launch("upsample_weights", "forward", weight=weight, dtype=dtype))
    grads = {name: made[name] for name in ("phases", "above", "below", "before", "behind")}
    launch("upsample_weights", "backward", **grads, dtype=torch.float32)
    assert len(launches) == 2
    assert_lean(launches, capability, 128)


@pytest.mark.gpu
@ORDERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_on_the_gpu(dtype, order):
    bound = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for shape in [*BORDERS, (6, 256, 64, 32)]:
        x = draw(shape, dtype, order).cuda()
        assert max(differences(upsample_border, border_reference, x)) < bound
    for shape in [*FILTERS, (128, 256, 5, 5)]:
        weight = draw(shape, torch.float32, order).cuda()
        assert max(differences(upsample_weights, weights_reference, weight, dtype)) < bound
