"""GroupedBatchNorm against nn.BatchNorm called once a group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dgnet_fast.models.batch_norm import BatchNormMode, GroupedBatchNorm

CHANNELS = 5


def pair(dtype, ndim):
    """Ours and PyTorch's with the same parameters and running statistics."""
    theirs = (nn.BatchNorm2d if ndim == 4 else nn.BatchNorm1d)(CHANNELS).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (theirs.weight, theirs.bias, theirs.running_mean):
            tensor.copy_(torch.randn(CHANNELS, generator=generator))
        theirs.running_var.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
        theirs.num_batches_tracked.fill_(7)
    ours = GroupedBatchNorm(CHANNELS).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def batch(dtype, ndim, count=12):
    shape = (count, CHANNELS, 6, 3)[:ndim]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (x * 2 + torch.arange(count).view(-1, *[1] * (ndim - 1))).to(dtype)  # groups differ in their mean


@pytest.mark.parametrize("ndim", [2, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("statistics", ["update", "batch", "running"])
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_equals_one_call_a_group(dtype, close, statistics, groups, ndim):
    ours, theirs = pair(dtype, ndim)
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    theirs.train(statistics != "running")
    x = batch(dtype, ndim).requires_grad_()
    again = x.detach().clone().requires_grad_()
    expected = torch.cat([theirs(part) for part in again.chunk(groups)])
    got = ours(x, BatchNormMode(groups, statistics))
    torch.testing.assert_close(got, expected, rtol=close, atol=close)
    direction = torch.linspace(-1, 1, got.numel(), dtype=dtype).view_as(got)
    (got * direction).sum().backward()
    (expected * direction).sum().backward()
    for one, other in ((x, again), (ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        torch.testing.assert_close(one.grad, other.grad, rtol=10 * close, atol=10 * close)
    after = theirs.state_dict() if statistics == "update" else before
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, after[name], rtol=close, atol=close)
    if statistics == "update":
        assert ours.num_batches_tracked == 7 + groups


def test_the_order_of_the_groups_counts():
    x = batch(torch.float64, 4)
    one, other = pair(torch.float64, 4)[0], pair(torch.float64, 4)[0]
    one(x, BatchNormMode(4, "update"))
    other(x.view(4, 3, *x.shape[1:]).flip(0).flatten(0, 1), BatchNormMode(4, "update"))
    assert (one.running_mean - other.running_mean).abs().min() > 0.01


def test_a_batch_that_cannot_be_cut():
    ours, _ = pair(torch.float32, 4)
    for groups in (5, 0):
        with pytest.raises(ValueError, match=f"a batch of 12 cannot be cut into {groups} equal groups"):
            ours(batch(torch.float32, 4), BatchNormMode(groups, "update"))
    assert ours.num_batches_tracked == 7


def test_the_gradient_of_an_evaluation_pass_survives_a_later_update_of_the_running_statistics():
    norm = GroupedBatchNorm(3).double()
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_()
    y = norm(leaf, BatchNormMode())
    with torch.no_grad():
        norm(10 * x + 5, BatchNormMode(1, "update"))
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    expected = torch.full_like(x, (1 + norm.eps) ** -0.5)  # the running variance was 1 when y was computed
    torch.testing.assert_close(grad, expected)
