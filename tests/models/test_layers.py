"""Shared blocks against their formulas written out with PyTorch's own functions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgnet_fast.models import layers
from dgnet_fast.models.layers import (
    ConvBlock,
    LayerNorm2d,
    ResidualBlock,
    SelfAttention2d,
    activation_module,
    chain,
    initialise,
    pad2d,
)
from dgnet_fast.ops import act_pad

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "lrelu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "selu": F.selu,
    "tanh": torch.tanh,
}
PADS = {"zero": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer_norm(x, gamma, beta):
    rows = []
    for sample in x:  # one sample at a time: the statistics are its own
        centred = sample - sample.mean()
        std = (centred.square().sum() / (sample.numel() - 1)).sqrt()
        rows.append(centred / (std + 1e-5) * gamma[:, None, None] + beta[:, None, None])
    return torch.stack(rows)


def block_with_noise(*args, dtype=torch.float64, **options):
    block = ConvBlock(*args, **options).to(dtype)
    with torch.no_grad():
        for k, (name, parameter) in enumerate(block.named_parameters()):
            if "activation" not in name:
                parameter.copy_(noise(*parameter.shape, dtype=dtype, seed=50 + k))
    return block


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activ", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["none", "in", "ln", "adain"])
def test_conv_block_norms_and_activations(norm, activ, dtype):
    block = block_with_noise(3, 5, 3, 1, 1, norm=norm, activ=activ, dtype=dtype)
    x, residual = noise(2, 3, 7, 6, dtype=dtype), noise(2, 5, 7, 6, dtype=dtype, seed=1)
    scale, shift = noise(2, 5, dtype=dtype, seed=2), noise(2, 5, dtype=dtype, seed=3)
    y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), block.conv.weight, block.conv.bias)
    if norm in ("in", "adain"):
        y = F.instance_norm(y, eps=1e-5)
    if norm == "adain":
        y = scale[:, :, None, None] * y + shift[:, :, None, None]
    if norm == "ln":
        y = layer_norm(y, block.norm.gamma, block.norm.beta)
    expected = ACTIVATIONS[activ](y)
    codes = (scale, shift) if norm == "adain" else (None, None)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(block(x, *codes), expected, **close)
    torch.testing.assert_close(block(x, *codes, residual=residual), expected + residual, **close)


@pytest.mark.parametrize(
    "kernel, stride, padding, dilation", [(3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (3, 1, 3, 3)]
)
@pytest.mark.parametrize("pad_type", PADS)
def test_conv_block_paddings(pad_type, kernel, stride, padding, dilation):
    block = block_with_noise(
        2, 4, kernel, stride, padding, activ="none", pad_type=pad_type, dilation=dilation
    )
    x = noise(2, 2, 10, 8)
    expected = F.conv2d(
        PADS[pad_type](padding)(x), block.conv.weight, block.conv.bias, stride=stride, dilation=dilation
    )
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pad2d(x, padding, pad_type), PADS[pad_type](padding)(x), rtol=0, atol=0)


def test_a_twice_differentiable_block_computes_the_same_and_differentiates_twice():
    plain = block_with_noise(2, 3, 3, 1, 1, norm="in", activ="lrelu")
    twice = block_with_noise(2, 3, 3, 1, 1, norm="in", activ="lrelu", twice_differentiable=True)
    x = noise(2, 2, 5, 4).requires_grad_()
    torch.testing.assert_close(plain(x), twice(x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(twice, x)


def test_layer_norm_is_per_sample_with_unbiased_std_and_eps_outside():
    norm = LayerNorm2d(3).double()
    with torch.no_grad():
        norm.gamma.copy_(noise(3, seed=2))
        norm.beta.copy_(noise(3))
    x = 1e-4 * noise(3, 3, 4, 5, seed=1)  # so small that where the eps stands shows
    torch.testing.assert_close(norm(x), layer_norm(x, norm.gamma, norm.beta), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm(x[1:2]), norm(x)[1:2], rtol=1e-12, atol=1e-12)


def test_layer_norm_of_low_precision_has_wide_statistics():
    norm = LayerNorm2d(8)
    x = (100 + noise(2, 8, 16, 16, dtype=torch.float32)).bfloat16()
    expected = layer_norm(x.double(), norm.gamma.double(), norm.beta.double())
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x).double(), expected, rtol=2**-8, atol=1e-4)  # one rounding


@pytest.mark.parametrize("norm, activ", [("in", "lrelu"), ("none", "lrelu"), ("ln", "relu")])
def test_residual_block(norm, activ):
    block = ResidualBlock(4, norm=norm, activ=activ, pad_type="reflect").double()
    x = noise(2, 4, 6, 5)
    y = x
    for conv, last in ((block.conv1, False), (block.conv2, True)):
        y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), conv.conv.weight, conv.conv.bias)
        if norm == "in":
            y = F.instance_norm(y, eps=1e-5)
        elif norm == "ln":
            y = layer_norm(y, conv.norm.gamma, conv.norm.beta)
        y = y if last else ACTIVATIONS[activ](y)
    torch.testing.assert_close(block(x), x + y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("norm", ["none", "in", "ln", "bn"])
@pytest.mark.parametrize("activ", ACTIVATIONS)
@pytest.mark.parametrize("pad_type", PADS)
def test_a_chain_computes_what_its_blocks_do_one_by_one(pad_type, activ, norm, twice):
    """In float32, as networks are trained, against float64 with padding by each block itself."""
    common = {"norm": norm, "activ": activ, "pad_type": pad_type, "twice_differentiable": twice}
    sizes = ((3, 4, 1), (4, 8, 3, 1, 1), (8, 8, 4, 2, 1))
    blocks = nn.ModuleList(ConvBlock(*size, **common) for size in sizes)
    blocks.append(ResidualBlock(8, **common))
    exact = copy.deepcopy(blocks).double()

    def one_by_one(blocks, x):
        for block in blocks:
            x = block(x)
        return x

    results = []
    for run, given, dtype in ((chain, blocks, torch.float32), (one_by_one, exact, torch.float64)):
        x = noise(2, 3, 12, 8, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        y = run(given, x)
        leaves, how = [x, *given.parameters()], {"create_graph": twice, "materialize_grads": True}
        found = [y, *torch.autograd.grad(y.square().sum(), leaves, allow_unused=True, **how)]
        if twice:
            found += torch.autograd.grad(found[1].square().sum(), given[0].conv.weight)
        results.append([t.detach() for t in found])
    for mine, expected in zip(*results, strict=True):
        scale = 1 + expected.abs().max().item()
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=2e-4 * scale)


def test_self_attention():
    layer = SelfAttention2d(16).double()
    x = noise(2, 16, 3, 4)
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)  # gamma starts at 0
    with torch.no_grad():
        layer.gamma.fill_(0.7)
    weight = {k: getattr(layer, k).weight[:, :, 0, 0] for k in ("query", "key", "value")}
    bias = {k: getattr(layer, k).bias for k in weight}
    assert (weight["query"].shape[0], weight["key"].shape[0], weight["value"].shape[0]) == (2, 2, 16)
    expected = x.clone()
    for n in range(2):
        points = x[n].flatten(1)
        q, k, v = (weight[p] @ points + bias[p][:, None] for p in ("query", "key", "value"))
        for i in range(points.shape[1]):
            attention = torch.softmax(torch.stack([q[:, i] @ k[:, j] for j in range(points.shape[1])]), 0)
            expected[n, :, i // 4, i % 4] += 0.7 * (v * attention).sum(dim=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="over 4 channels; it needs at least 8"):
        SelfAttention2d(4)


@pytest.mark.parametrize("kind", ["gaussian", "kaiming", "xavier", "orthogonal"])
def test_initialisation(kind):
    conv, linear = nn.Conv2d(32, 48, 3), nn.Linear(300, 200)
    initialise(nn.Sequential(conv, linear), kind, torch.Generator().manual_seed(0))
    for layer in (conv, linear):
        assert (layer.bias == 0).all()
        fan_out, fan_in = layer.weight.shape[0] * layer.weight[0, 0].numel(), layer.weight[0].numel()
        std = {
            "gaussian": 0.02,
            "kaiming": math.sqrt(2 / fan_in),
            "xavier": math.sqrt(4 / (fan_in + fan_out)),
        }
        if kind == "orthogonal":
            rows = layer.weight.flatten(1)
            torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows)), rtol=0, atol=1e-5)
        else:
            assert abs(layer.weight.std().item() / std[kind] - 1) < 0.03
            assert abs(layer.weight.mean().item()) < 0.05 * std[kind]


def test_layer_norm_starts_uniform_from_the_generator():
    drawn = []
    for _ in range(2):
        norm = LayerNorm2d(4000)
        initialise(norm, "kaiming", torch.Generator().manual_seed(3))
        drawn.append(norm.gamma.detach())
    assert torch.equal(*drawn) and (norm.beta == 0).all()
    assert 0 <= drawn[0].min() < 0.01 and 0.99 < drawn[0].max() < 1 and abs(drawn[0].mean() - 0.5) < 0.02


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match="activation is 'gelu'; allowed: relu, lrelu, prelu, selu, tanh, none"
    ):
        activation_module("gelu")
    with pytest.raises(ValueError, match="init is 'zeros'; allowed: gaussian, kaiming, xavier, orthogonal"):
        initialise(nn.Linear(2, 2), "zeros")


@pytest.mark.parametrize("activ", ["lrelu", "relu", "none", "tanh"])
@pytest.mark.parametrize("twice", [False, True])
def test_a_bias_may_be_left_to_the_padding(monkeypatch, activ, twice):
    """As on CUDA: the numbers are those of a convolution that adds it."""
    torch.manual_seed(0)
    blocks = [ConvBlock(n, 6, 3, 1, 1, activ=activ, twice_differentiable=twice).double() for n in (3, 6)]
    for block in blocks:
        torch.nn.init.normal_(block.conv.bias)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    given = [x, *(p for block in blocks for p in block.parameters())]
    results = []
    for left in (False, True):
        seen = []
        monkeypatch.setattr(layers, "follower_adds_bias", lambda _, left=left: left)
        monkeypatch.setattr(
            layers,
            "act_pad",
            lambda x, bias=None, seen=seen, **how: seen.append(bias) or act_pad(x, bias, **how),
        )
        y = chain(blocks, x)
        results.append([y, *torch.autograd.grad(y.square().sum(), given)])
        # the first padded by one, the last not at all
        assert [b is not None for b in seen].count(True) == 2 * (left and activ in ("lrelu", "relu"))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
