"""`upsample_conv` against upsampling, padding and convolving in turn."""

import pytest
import torch

from dgnet_fast.ops import layer_norm_act
from dgnet_fast.ops.upsample_conv import upsample_conv, upsample_conv_phases, upsample_conv_reference

SHAPES = [(2, 3, 4, 5, 6), (1, 2, 1, 2, 2), (3, 1, 2, 7, 3)]  # B, C, O, H, W


def case(b, c, o, h, w):
    generator = torch.Generator().manual_seed(b + c + o + h + w)
    tensors = [
        torch.randn(s, generator=generator, dtype=torch.float64) for s in ((b, c, h, w), (o, c, 5, 5), (o,))
    ]
    return [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("pad_type", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_plain_form_with_all_gradients(shape, pad_type):
    inputs = case(*shape)
    ours, plain = upsample_conv(*inputs, pad_type), upsample_conv_reference(*inputs, pad_type)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    direction = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad(y, inputs, direction) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_second_derivatives():
    assert torch.autograd.gradgradcheck(upsample_conv, case(1, 2, 1, 3, 2))


def test_without_bias_and_in_float32():
    x, weight, _ = (t.detach().float() for t in case(2, 8, 4, 9, 5))
    torch.testing.assert_close(
        upsample_conv(x, weight, None), upsample_conv_reference(x, weight, None), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pad_type", ["reflect", "zero"])
def test_picture_and_gradient_keep_the_memory_order_and_are_shuffled_in_one_copy(
    monkeypatch, pad_type, order
):
    monkeypatch.delattr(torch.nn.functional, "pixel_shuffle")  # on CUDA its result is NCHW
    inputs = [t.detach().float() for t in case(2, 8, 8, 6, 5)]
    x, weight, bias = (t.contiguous(memory_format=order) if t.ndim == 4 else t for t in inputs)
    seen = []
    x.requires_grad_()
    y = upsample_conv(x, weight, bias.requires_grad_(), pad_type)
    small = next(n for n in _nodes(y.grad_fn) if n.name() == "_JoinedBackward")
    small.register_hook(lambda made, _: seen.append(made[0]))
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, bias), grad)
    plain = torch.autograd.grad(upsample_conv_reference(x, weight, bias, pad_type), (x, bias), grad)
    for tensor in (y, *seen):
        assert tensor.is_contiguous(memory_format=order)
    assert len(seen) == 1
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pad_type", ["reflect", "replicate", "zero"])
def test_a_norm_of_the_phases_is_the_norm_of_the_picture(pad_type, order):
    x, weight, bias = case(2, 3, 4, 5, 6)
    x = x.detach().contiguous(memory_format=order).requires_grad_()
    gamma, beta = torch.rand(4).double().requires_grad_(), torch.randn(4).double().requires_grad_()
    how = {"negative_slope": 0.2, "padding": 1}
    ours = layer_norm_act(upsample_conv_phases(x, weight, pad_type), gamma, beta, bias, phases=True, **how)
    plain = layer_norm_act(upsample_conv(x, weight, bias, pad_type), gamma, beta, **how)
    torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)
    leaves = (x, weight, bias, gamma, beta)
    grad = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad(y, leaves, grad) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def _nodes(node):
    """The node and all before it."""
    found, left = [], [node]
    while left:
        found.append(left.pop())
        left += [n for n, _ in found[-1].next_functions if n is not None]
    return found


@pytest.mark.parametrize("pad_type", ["reflect", "replicate", "zero"])
def test_compiled_it_has_the_pictures_precision_whatever_the_bias_has(fresh_compiler, pad_type):
    """G's upsampling keeps its float32 weights, which autocast narrows, all but the bias; the result was float32 then."""
    x, weight = torch.randn(2, 4, 4, 3, dtype=torch.bfloat16), torch.randn(3, 4, 5, 5, dtype=torch.bfloat16)
    bias = torch.randn(3)
    compiled = torch.compile(upsample_conv, backend="aot_eager", fullgraph=True)
    expected, got = (function(x, weight, bias, pad_type) for function in (upsample_conv, compiled))
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 3, 3), None), r"weight has shape \(1, 2, 3, 3\)"),
        ((torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 5, 5), None), r"x has shape \(1, 3, 4, 4\)"),
        ((torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 5, 5), None), "at least 2"),
        ((torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 5, 5), None, "circular"), "'circular'"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        upsample_conv(*arguments)
