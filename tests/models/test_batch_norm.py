"""GroupedBatchNorm against nn.BatchNorm called once a group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.models.batch_norm import BatchNormMode, GroupedBatchNorm, fold_batch_norms

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


def test_compiles_with_its_update_of_the_running_statistics(fresh_compiler):
    x = batch(torch.float32, 4).contiguous(memory_format=torch.channels_last)
    results = []
    for wrap in (lambda norm: norm, lambda norm: torch.compile(norm, fullgraph=True, backend="aot_eager")):
        norm, leaf = pair(torch.float32, 4)[0], x.clone().requires_grad_()
        module = wrap(norm)
        for _ in range(2):
            y = module(leaf, BatchNormMode(4, "update"), leaf.detach(), relu=True)
        (grad,) = torch.autograd.grad(y.square().sum(), leaf)
        results.append([y, grad, norm.running_mean, norm.running_var, norm.num_batches_tracked])
    assert results[0][-1] == 7 + 2 * 4
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def small_encoder(style, seed=0):
    """E_a whose running statistics, weights and biases do something."""
    encoder = AppearanceEncoder(5, style=style, width=4, blocks=(1, 1, 2, 1), features=6).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (t for t in (*encoder.parameters(), *encoder.buffers()) if t.ndim == 1):
            tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) - 0.3)
    return encoder


@pytest.mark.parametrize("style", ["AB", "normal", "PCB"])
def test_folded_norms_give_what_the_network_gives(style):
    encoder = small_encoder(style)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    folded = fold_batch_norms(encoder)
    assert not any(isinstance(module, GroupedBatchNorm) for module in folded.modules())
    x = torch.randn(3, 3, 64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours, expected = folded(x, BatchNormMode()), encoder(x, BatchNormMode())
    for got, wanted in zip(
        (ours.code, *ours.features, *ours.logits),
        (expected.code, *expected.features, *expected.logits),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted.detach(), rtol=1e-12, atol=1e-12)
        assert not got.requires_grad
    # the network itself still trains, and shares nothing with its copy
    assert encoder.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(p.requires_grad for p in encoder.parameters())
    encoder(x, BatchNormMode(1, "update")).logits[0].sum().backward()
    assert torch.equal(folded(x, BatchNormMode()).code, ours.code)
    assert fold_batch_norms(folded) is folded


def test_folded_norms_refuse_batch_statistics():
    folded = fold_batch_norms(small_encoder("AB"))
    with pytest.raises(ValueError, match="statistics is 'batch'.*allows: running"):
        folded(torch.zeros(2, 3, 64, 32, dtype=torch.float64), BatchNormMode(1, "batch"))


def test_a_norm_without_a_layer_before_it_is_not_folded():
    with pytest.raises(ValueError, match="1 follows 0; a convolution or linear"):
        fold_batch_norms(nn.Sequential(nn.ReLU(), GroupedBatchNorm(3)))


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_on_a_gpu_as_on_the_cpu(fresh_compiler, compiled):
    x = batch(torch.float32, 4).contiguous(memory_format=torch.channels_last)
    results = []
    for device in ("cpu", "cuda"):
        norm = pair(torch.float32, 4)[0].to(device)
        leaf = x.to(device).requires_grad_()
        module = torch.compile(norm, fullgraph=True) if compiled and device == "cuda" else norm
        y = module(leaf, BatchNormMode(4, "update"), leaf.detach(), relu=True)
        (grad,) = torch.autograd.grad(y.square().sum(), leaf)
        results.append([t.cpu() for t in (y, grad, norm.running_mean, norm.running_var)])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
