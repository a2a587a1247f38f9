"""twice_conv: `F.conv2d` at every order, without a convolution whose filter is as large as a picture."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dgnet_fast.config import DiscriminatorConfig
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.ops.input_alone import InputAlone, current
from dgnet_fast.ops.twice_conv import twice_conv
from dgnet_fast.training.losses import real_scores_and_penalty

EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Filters(TorchDispatchMode):
    """Convolutions that run within it: sizes of their filters, and which gradients were asked for."""

    def __init__(self):
        super().__init__()
        self.sizes, self.masks = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.sizes.append(tuple(args[1].shape[2:]))
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


def penalty(convolve, x, weights, stride, padding, alone=None):
    alone = alone or InputAlone()
    with alone.forward():
        first = F.leaky_relu(convolve(x, *weights[:2], stride=stride, padding=padding), 0.2)
        y = convolve(first * first, *weights[2:], stride=(1, 1), padding=(0, 0))
    with alone.backward():
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y, gradient.square().sum() + y.square().sum()


def plain(x, weight, bias, *, stride, padding):
    return F.conv2d(x, weight, bias, stride, padding)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 4), (4, 2)])
@pytest.mark.parametrize("stride, padding", [((1, 1), (0, 0)), ((2, 2), (1, 1)), ((2, 1), (0, 1))])
def test_second_order_equals_autograds(kernel, stride, padding):
    x = torch.randn(2, 3, 12, 9, dtype=torch.float64, requires_grad=True)
    shapes = [(8, 3, *kernel), (8,), (2, 8, 3, 2), (2,)]
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    found = []
    for convolve in (plain, twice_conv):
        with Filters() as seen:
            y, total = penalty(convolve, x, weights, stride, padding)
            found.append((y, total, *torch.autograd.grad(total, [x, *weights])))
    torch.testing.assert_close(found[1], found[0], **EXACT)
    assert set(seen.sizes) == {kernel, (3, 2)}  # of ours; PyTorch's own formula has larger ones
    third = [
        torch.autograd.grad(
            torch.autograd.grad(penalty(c, x, weights, stride, padding)[1], x, create_graph=True)[0]
            .square()
            .sum(),
            weights,
        )
        for c in (plain, twice_conv)
    ]
    torch.testing.assert_close(third[1], third[0], **EXACT)


def test_the_input_alone_is_seen_on_another_thread():
    """Backward passes on CUDA run on a thread of autograd's own: what is asked for is no property of a thread."""
    x = torch.randn(2, 3, 12, 9, dtype=torch.float64, requires_grad=True)
    weights = [
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in ((8, 3, 3, 3), (8,), (2, 8, 3, 2), (2,))
    ]
    alone, found = InputAlone(), []
    with alone.forward():
        first = twice_conv(x, *weights[:2]).square()
        y = twice_conv(first, *weights[2:])
    assert current() is None

    def elsewhere():
        with Filters() as seen:
            torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(set(seen.masks))

    with alone.backward():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert found == [{(True, False, False)}]
    with Filters() as seen:
        torch.autograd.grad(y.sum(), [x, *weights])
    assert set(seen.masks) == {(True, True, True)}


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("kind, options", [("lsgan", {"non_local": 2, "dim": 8}), ("wgan", {})])
def test_no_filter_in_ds_penalty_is_as_large_as_a_picture(amp, kind, options):
    """Of any layer of D, in the precision of autocast."""
    discriminator = Discriminator(
        DiscriminatorConfig(**{"dim": 4, "n_res": 1, "num_scales": 2, "gan_type": kind} | options)
    ).to(memory_format=torch.channels_last)
    real = torch.randn(2, 3, 256, 128) if kind == "wgan" else torch.randn(2, 3, 32, 16)
    with Filters() as seen:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp is not None):
            scores, value = real_scores_and_penalty(discriminator, real)
        (sum(s.float().sum() for s in scores) + value.sum()).backward()
    assert seen.sizes and max(max(size) for size in seen.sizes) <= 4
    assert all(score.dtype == (amp or torch.float32) for score in scores)
    assert all(p.grad is not None for p in discriminator.parameters())
