"""loss_adversarial on the CPU: against the formula in float64, dtypes, errors, compile."""

from __future__ import annotations

import pytest
import torch

from dgnet_fast.ops import loss_adversarial, loss_adversarial_reference
from dgnet_fast.ops.loss_adversarial import KINDS

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
MAPS = [((2, 3, 1, 8, 5), F32), ((2, 3, 1, 3, 2), BF16), ((2, 3), F16), ((2, 3, 1, 23, 5), BF16)]
REAL = [False, True, True, False]


def draw_maps(dtype=None, maps=MAPS):
    generator = torch.Generator().manual_seed(0)
    return [(3 * torch.randn(shape, generator=generator)).to(own).to(dtype or own) for shape, own in maps]


def outcome(function, maps, real=REAL, **options):
    """The loss and the maps' gradients, for a fixed gradient of the loss."""
    leaves = [x.detach().clone().requires_grad_() for x in maps]
    loss = function(leaves, real, **options)
    grad = torch.tensor([0.5, -2.0], dtype=loss.dtype)
    return loss.detach(), torch.autograd.grad(loss, leaves, grad)


def by_hand(maps, real, kind, weight):
    total = torch.zeros(2, dtype=F64)
    for x, as_real in zip(maps, real, strict=True):
        x = x.double().flatten(1)
        target = 1.0 if as_real else 0.0
        if kind == "lsgan":
            total += (x - target).square().mean(dim=1)
        elif kind == "nsgan":
            log_p = (x.sigmoid() if as_real else 1 - x.sigmoid()).log()
            total -= log_p.mean(dim=1)
        else:
            total += (1 - 2 * target) * x.mean(dim=1) + 0.001 * x.square().sum(dim=1)
    return weight * total


@pytest.mark.parametrize("function", [loss_adversarial, loss_adversarial_reference])
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_formula(kind, function):
    maps = draw_maps()
    loss, gradients = outcome(function, maps, kind=kind, weight=2.0)
    assert loss.dtype == F32
    torch.testing.assert_close(loss.double(), by_hand(maps, REAL, kind, 2.0), rtol=1e-6, atol=1e-6)
    _, exact = outcome(loss_adversarial_reference, [x.double() for x in maps], kind=kind, weight=2.0)
    for got, wanted, x in zip(gradients, exact, maps, strict=True):
        assert got.dtype == x.dtype and got.shape == x.shape
        assert (got.double() - wanted).abs().max() <= 2 * torch.finfo(x.dtype).eps * wanted.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    maps = [x.requires_grad_() for x in draw_maps(F64)]
    for function in (loss_adversarial, loss_adversarial_reference):
        assert torch.autograd.gradcheck(lambda *x, f=function: f(x, REAL, kind=kind, weight=2.0), maps)


def test_far_scores_stay_finite():
    far = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = loss_adversarial([far], [True], kind="nsgan")
    torch.testing.assert_close(loss, torch.tensor([100.0]))
    torch.testing.assert_close(torch.autograd.grad(loss, far)[0], torch.tensor([[-0.5, 0.0]]))


def test_only_what_needs_a_gradient_has_one():
    maps = draw_maps()
    leaf = maps[2].requires_grad_()
    loss_adversarial(maps, REAL, kind="lsgan").sum().backward()
    assert leaf.grad is not None and maps[0].grad is None


def test_opcheck_and_compile():
    torch._dynamo.reset()
    maps = draw_maps()
    leaves = [x.requires_grad_() for x in maps]
    torch.library.opcheck(torch.ops.dgnet_fast.loss_adversarial.default, (leaves, REAL, "nsgan", 1.0))
    compiled = torch.compile(loss_adversarial, fullgraph=True)
    loss, gradients = outcome(compiled, maps, kind="wgan")
    expected, wanted = outcome(loss_adversarial, maps, kind="wgan")
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))


def test_double_backward_raises():
    leaf = draw_maps()[0].requires_grad_()
    (gradient,) = torch.autograd.grad(
        loss_adversarial([leaf], [True], kind="lsgan").sum(), leaf, create_graph=True
    )
    with pytest.raises(RuntimeError, match="loss_adversarial_reference"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("maps", "real", "kind", "message"),
    [
        ([torch.zeros(2, 3)], [True], "hinge", "kind is 'hinge'; allowed: lsgan, nsgan, wgan"),
        ([], [], "lsgan", "at least one; got 0 and 0"),
        ([torch.zeros(2, 3)], [], "lsgan", "equally many"),
        ([torch.zeros(2)], [True], "lsgan", r"scores\[0\] must have shape \(S, B, ...\)"),
        ([torch.zeros(2, 3), torch.zeros(3, 3)], [True, True], "lsgan", r"scores\[1\].*got \(3, 3\)"),
        ([torch.zeros(2, 3, dtype=torch.int32)], [True], "lsgan", "int32"),
    ],
)
def test_bad_input(maps, real, kind, message):
    for function in (loss_adversarial, loss_adversarial_reference):
        with pytest.raises(ValueError, match=message):
            function(maps, real, kind=kind)
