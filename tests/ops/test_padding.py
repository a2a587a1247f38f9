"""Padding as CUDA takes it: plain operations, so that a CPU can check it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dgnet_fast.ops.padding import _Replicated, replicate_pad, with_interior


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "padding"), [((2, 3, 5, 4), 1), ((1, 2, 1, 3), 2), ((2, 4, 2, 1), 3)], ids=str
)
def test_it_is_pytorchs(shape, padding, channels_last):
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=order).requires_grad_()
    y, expected = _Replicated.apply(x, padding), F.pad(x, (padding,) * 4, mode="replicate")
    assert torch.equal(y, expected)
    grad_y = torch.randn_like(y)
    (grad,), (wanted,) = (torch.autograd.grad(result, x, grad_y) for result in (y, expected))
    torch.testing.assert_close(grad, wanted)
    assert all(t.is_contiguous(memory_format=order) for t in (y, grad))
    assert torch.autograd.gradgradcheck(lambda x: _Replicated.apply(x, padding).square(), (x,))


@pytest.mark.gpu
def test_equal_bits_on_the_gpu_in_every_run():
    x = torch.randn(8, 32, 128, 64, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    grad_y = torch.randn(8, 32, 130, 66, device="cuda")
    runs = [torch.autograd.grad(replicate_pad(x, 1), x, grad_y)[0] for _ in range(3)]
    assert all(torch.equal(runs[0], other) for other in runs)
    assert runs[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_picture_and_its_interior_have_the_gradient_of_both(order):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=generator).contiguous(memory_format=order)
    weights = [torch.randn(s, dtype=torch.float64, generator=generator) for s in ((4, 3, 3, 3), (2, 3, 3, 2))]

    def both(y, parted=with_interior):
        whole, inner = parted(y, 2)
        return F.conv2d(whole, weights[0]).square().sum() + (inner * weights[1]).square().sum()

    def sliced(y, padding):
        return y, y[:, :, padding:-padding, padding:-padding]

    y.requires_grad_()
    ours, plain = (torch.autograd.grad(both(y, parted), y)[0] for parted in (with_interior, sliced))
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    assert ours.is_contiguous(memory_format=order)
    assert torch.autograd.gradgradcheck(both, (y,))
    for k in (0, 1):  # one of them alone
        one, other = (
            torch.autograd.grad(parted(y, 2)[k].square().sum(), y)[0] for parted in (with_interior, sliced)
        )
        assert torch.equal(one, other)
    assert all(one is y for one in with_interior(y, 0))
