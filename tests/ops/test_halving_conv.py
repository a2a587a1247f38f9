"""`halving_conv` against the plain convolution of stride 2."""

import pytest
import torch
import torch.nn.functional as F

from dgnet_fast.ops import halving_conv as module
from dgnet_fast.ops.halving_conv import halving_conv


def case(shape, out, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = 0.1 * torch.randn(out, shape[1], 4, 4, generator=generator, dtype=dtype)
    return x, weight, torch.randn(out, generator=generator, dtype=dtype)


@pytest.mark.parametrize("shape", [(2, 8, 22, 20), (1, 8, 26, 30), (3, 16, 26, 18)])
def test_equals_the_plain_convolution_with_all_gradients(shape):
    plain = [t.double().requires_grad_() for t in case(shape, 16)]
    ours = [t.requires_grad_() for t in case(shape, 16)]
    assert module._serves(*ours)
    results = halving_conv(*ours), F.conv2d(*plain, stride=2)
    torch.testing.assert_close(results[0].double(), results[1], rtol=1e-4, atol=1e-4)
    direction = torch.randn(results[1].shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(results[0], ours, direction)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(gradients, torch.autograd.grad(results[1], plain, direction.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


def test_what_the_fused_op_has_no_body_for_is_the_plain_convolution():
    for x, weight, bias in (
        case((2, 8, 25, 20), 16),  # odd
        case((2, 3, 22, 20), 16),  # channels
        case((1, 64, 8, 8), 16),  # too few pixels
        case((2, 8, 22, 20), 16, torch.float64),
    ):
        assert not module._serves(x, weight, bias)
        assert torch.equal(halving_conv(x, weight, bias), F.conv2d(x, weight, bias, stride=2))
    x, weight, _ = case((2, 8, 22, 20), 16)
    assert not module._serves(x.contiguous(), weight, None) and module._serves(x, weight, None)
