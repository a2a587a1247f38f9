"""D against a straightforward formulation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgnet_fast.config import DiscriminatorConfig
from dgnet_fast.models import layers
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.ops.act_pad import act_pad_for_two
from dgnet_fast.training.losses import real_scores_and_penalty

EXACT = {"rtol": 1e-11, "atol": 1e-11}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**changes):
    config = DiscriminatorConfig(**{"dim": 4, "n_res": 2, "num_scales": 3} | changes)
    discriminator = Discriminator(config, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for k, parameter in enumerate(discriminator.parameters()):
            parameter.copy_(0.4 * noise(*parameter.shape, seed=300 + k))
    return discriminator


def conv(block, x, padding, stride=1):
    if padding:
        x = F.pad(x, (padding,) * 4, mode="reflect")
    return F.conv2d(x, block.conv.weight, block.conv.bias, stride=stride)


def norm(kind, block, x):
    if kind == "in":
        return F.instance_norm(x, eps=1e-5)
    if kind == "ln":
        std, mean = torch.std_mean(x, dim=(1, 2, 3), correction=1, keepdim=True)
        x = (x - mean) / (std + 1e-5)
        return x * block.norm.gamma[:, None, None] + block.norm.beta[:, None, None]
    return x


def net_formula(net, x, kind, layers):
    """1×1, 3×3, 3×3/2, then [3×3, 3×3/2] a further layer, residual blocks, 1×1 → 1."""
    steps = [(0, 1), (1, 1), (1, 2)] + [(1, 1), (1, 2)] * (layers - 1)
    assert len(net.stem) == len(steps)
    for block, (padding, stride) in zip(net.stem, steps, strict=True):
        x = F.leaky_relu(norm(kind, block, conv(block, x, padding, stride)), 0.2)
    x = net.attention_before(x) if net.attention_before is not None else x
    for block in net.residual:
        y = F.leaky_relu(norm(kind, block.conv1, conv(block.conv1, x, 1)), 0.2)
        x = x + norm(kind, block.conv2, conv(block.conv2, y, 1))
    x = net.attention_after(x) if net.attention_after is not None else x
    return F.conv2d(x, net.to_score.weight, net.to_score.bias)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "in"},
        {"norm": "ln"},
        {"n_layer": 3, "num_scales": 2},
        {"non_local": 1},
        {"non_local": 2},
        {"n_res": 0},
    ],
    ids=str,
)
def test_every_scale(changes):
    discriminator = make(**{"num_scales": 3} | changes)
    layers, kind = changes.get("n_layer", 2), changes.get("norm", "none")
    x = noise(2, 3, 32, 24)
    scores = discriminator(x)
    assert len(scores) == changes.get("num_scales", 3)
    pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
    for k, (net, score) in enumerate(zip(discriminator.scales, scores, strict=True)):
        assert (net.attention_before is not None, net.attention_after is not None) == (
            changes.get("non_local", 0) > 1,
            changes.get("non_local", 0) > 0,
        )
        torch.testing.assert_close(score, net_formula(net, x, kind, layers), **EXACT)
        torch.testing.assert_close(discriminator.score(x, k), score, **EXACT)
        assert score.shape[2] == 32 // 2 ** (layers + k)
        x = pool(x)


def test_widths_double_up_to_the_limit():
    discriminator = Discriminator(DiscriminatorConfig(dim=200, n_layer=4, n_res=1, num_scales=1))
    widths = [block.conv.out_channels for block in discriminator.scales[0].stem]
    assert widths == [200, 200, 200, 200, 400, 400, 512, 512, 512]


def test_shrink_is_an_average_without_the_padding():
    x = noise(2, 3, 9, 6)
    pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
    torch.testing.assert_close(Discriminator.shrink(x), pool(x), rtol=0, atol=0)
    torch.testing.assert_close(Discriminator.shrink(x, 2), pool(pool(x)), rtol=0, atol=0)
    torch.testing.assert_close(Discriminator.shrink(x, 0), x, rtol=0, atol=0)
    assert torch.allclose(Discriminator.shrink(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize("norm_kind", ["none", "in"])
def test_wasserstein(norm_kind):
    discriminator = make(gan_type="wgan", dim=2, norm=norm_kind)
    assert len(discriminator.scales) == 1
    net, x = discriminator.scales[0], noise(2, 3, 256, 128)
    (score,) = discriminator(x)
    assert score.shape == (2, 1, 1, 1)
    for k, block in enumerate(net.stem):
        assert block.conv.kernel_size == (4, 4)
        x = conv(block, x, 1, 2)
        x = F.leaky_relu(norm(norm_kind if k else "none", block, x), 0.2)
    torch.testing.assert_close(score, F.conv2d(x, net.to_score.weight, net.to_score.bias), **EXACT)


@pytest.mark.parametrize("changes", [{}, {"norm": "in"}, {"norm": "ln"}, {"non_local": 2}], ids=str)
def test_a_pictures_score_does_not_depend_on_its_batch(changes):
    discriminator = make(**changes)
    x = noise(4, 3, 32, 24)
    whole = discriminator(x)
    for n in range(4):
        for score, alone in zip(whole, discriminator(x[n : n + 1]), strict=True):
            torch.testing.assert_close(score[n : n + 1], alone, **EXACT)


def test_initialisation_is_gaussian():
    discriminator = Discriminator(DiscriminatorConfig(), torch.Generator().manual_seed(0))
    weights = torch.cat([m.weight.flatten() for m in discriminator.modules() if isinstance(m, nn.Conv2d)])
    assert abs(weights.std().item() - 0.02) < 2e-4 and abs(weights.mean().item()) < 1e-4
    assert all((m.bias == 0).all() for m in discriminator.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("changes", "fused"),
    [({}, 2), ({"pad_type": "zero"}, 0), ({"activ": "tanh"}, 1), ({"non_local": 2, "dim": 8}, 0)],
)
def test_biases_residuals_and_padding_in_one_op(monkeypatch, changes, fused):
    """As on CUDA: scores, gradient penalty and the gradients of both are those of convolution, sum and padding in turn."""
    real, results, calls = noise(2, 3, 16, 12), [], []
    for follows in (False, True):
        monkeypatch.setattr(layers, "follower_adds_bias", lambda _, follows=follows: follows)
        monkeypatch.setattr(
            layers,
            "act_pad_for_two",
            lambda *given, follows=follows, **how: calls.append(follows) or act_pad_for_two(*given, **how),
        )
        discriminator = make(num_scales=1, **changes)
        scores, penalty = real_scores_and_penalty(discriminator, real)
        total = sum(score.square().sum() for score in scores) + penalty.sum()
        results.append([*scores, penalty, *torch.autograd.grad(total, list(discriminator.parameters()))])
    assert len(calls) == fused  # before the first residual block, and between the two
    # with attention the penalty is 4e9, and what rounding leaves of it differs from CPU to CPU
    rounding = 1e-13 * max(one.abs().max().item() for one in results[0])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=max(1e-9, rounding))
