"""Every term of the objective against its formula, and the teachers' labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dgnet_fast.config import DiscriminatorConfig
from dgnet_fast.models.appearance_encoder import Appearance
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.models.teacher import teacher_labels
from dgnet_fast.training import losses

EXACT = {"rtol": 1e-12, "atol": 1e-12}
S, B, IDS = 2, 3, 5


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_l1_per_stream_without_gradient_to_the_target():
    x, target = noise(S, B, 3, 4, 2).requires_grad_(), noise(S, B, 3, 4, 2, seed=1).requires_grad_()
    (got,) = losses.l1_terms([(x, target)])
    expected = torch.stack([(x[k] - target[k]).abs().sum() / (B * 24) for k in range(S)])
    torch.testing.assert_close(got, expected, **EXACT)
    got.sum().backward()
    torch.testing.assert_close(x.grad, (x - target).sign().detach() / (B * 24), **EXACT)
    assert target.grad is None


def test_cross_entropy_is_the_mean_over_heads():
    logits = [noise(S * B, IDS, seed=k) for k in range(3)]
    labels = torch.tensor([[0, 4, 2], [1, 1, 3]])
    expected = torch.zeros(S, dtype=torch.float64)
    for one in logits:
        for k in range(S):
            for n in range(B):
                row = one[k * B + n]
                expected[k] += (row.exp().sum().log() - row[labels[k, n]]) / (3 * B)
    torch.testing.assert_close(losses.cross_entropy(logits, labels), expected, **EXACT)


def test_soft_label_divergence():
    logits, target = noise(S * B, IDS), noise(S, B, IDS, seed=1).softmax(dim=-1)
    p = logits.softmax(dim=1).view(S, B, IDS)
    expected = (target * (target.log() - p.log())).sum(dim=-1).sum(dim=1) / B
    torch.testing.assert_close(losses.soft_label_divergence(logits, target), expected, **EXACT)
    hard = F.one_hot(torch.tensor([[0, 4, 2], [1, 1, 3]]), IDS).double()  # zeros in q count nothing
    cross = losses.cross_entropy([logits], hard.argmax(dim=-1))
    torch.testing.assert_close(losses.soft_label_divergence(logits, hard), cross, **EXACT)


def scores(seed):
    return [2 * noise(S, B, 1, 4, 3, seed=seed), 2 * noise(S, B, 1, 2, 2, seed=seed + 1)]


def test_lsgan():
    fake, real = scores(0), scores(10)
    expected = sum(
        torch.stack([(f[k] ** 2).mean() + ((r[k] - 1) ** 2).mean() for k in range(S)])
        for f, r in zip(fake, real, strict=True)
    )
    torch.testing.assert_close(losses.discriminator_term(fake, real, "lsgan"), expected, **EXACT)
    expected = sum(torch.stack([2 * ((f[k] - 1) ** 2).mean() for k in range(S)]) for f in fake)
    torch.testing.assert_close(losses.generator_term(fake, "lsgan"), expected, **EXACT)


def test_nsgan_is_the_binary_cross_entropy_of_the_sigmoid():
    fake, real = scores(0), scores(10)

    def bce(score, target):
        return torch.stack(
            [F.binary_cross_entropy(one.sigmoid(), torch.full_like(one, target)) for one in score]
        )

    expected = sum(bce(f, 0.0) + bce(r, 1.0) for f, r in zip(fake, real, strict=True))
    torch.testing.assert_close(losses.discriminator_term(fake, real, "nsgan"), expected, **EXACT)
    expected = sum(bce(f, 1.0) for f in fake)
    torch.testing.assert_close(losses.generator_term(fake, "nsgan"), expected, **EXACT)
    far = [torch.full((S, B, 1, 1, 1), -200.0)]  # where the sigmoid is 0 the loss is still right
    torch.testing.assert_close(losses.generator_term(far, "nsgan"), torch.full((S,), 200.0))


def test_wgan_with_drift():
    fake, real = scores(0)[:1], scores(10)[:1]
    f, r = fake[0], real[0]
    drift = torch.stack([0.001 * ((f[k] ** 2).sum() + (r[k] ** 2).sum()) for k in range(S)])
    means = torch.stack([f[k].mean() - r[k].mean() for k in range(S)])
    torch.testing.assert_close(losses.discriminator_term(fake, real, "wgan"), means + drift, **EXACT)
    expected = torch.stack([-f[k].mean() + 0.001 * (f[k] ** 2).sum() for k in range(S)])
    torch.testing.assert_close(losses.generator_term(fake, "wgan"), expected, **EXACT)


def test_an_unknown_adversarial_loss_is_refused():
    for call in (lambda: losses.generator_term(scores(0), "hinge"),
                 lambda: losses.discriminator_term(scores(0), scores(1), "hinge")):  # fmt: skip
        with pytest.raises(ValueError, match="kind is 'hinge'; allowed: lsgan, nsgan, wgan"):
            call()


def test_losses_are_computed_in_at_least_float32():
    x = torch.full((S, B, 3, 64, 64), 0.1, dtype=torch.bfloat16)
    (got,) = losses.l1_terms([(x, torch.zeros_like(x))])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, x.float()[:, 0, 0, 0, 0])
    assert losses.wide(x.double()).dtype == torch.float64


# --- all terms of a part at once


def same_with_gradients(one, other, leaves, exact=True):
    """Equal values and gradients of the leaves, to the bit where exact."""
    grad = noise(*one.shape, seed=99).to(one.dtype)
    pairs = [(one, other)]
    pairs += zip(*(torch.autograd.grad(loss, leaves, grad) for loss in (one, other)), strict=True)
    for ours, theirs in pairs:
        if exact:
            assert torch.equal(ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_l1_terms(dtype):
    shapes = [(S, B, 3, 16, 8), (S, B, 3, 16, 8), (S, B, 40)]
    predictions = [noise(*shape, seed=k).to(dtype).requires_grad_() for k, shape in enumerate(shapes)]
    pairs = [(x, noise(*x.shape, seed=10 + k).to(dtype)) for k, x in enumerate(predictions)]
    plain = torch.stack([(x - target).abs().flatten(1).mean(dim=1) for x, target in pairs])
    same_with_gradients(losses.l1_terms(pairs), plain, predictions, exact=dtype == torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_identity_terms(dtype):
    labels = torch.tensor([[0, 4, 2], [1, 1, 3]])
    logits = [noise(S * B, IDS, seed=k).to(dtype).requires_grad_() for k in range(3)]
    target = noise(S, B, IDS, seed=5).softmax(dim=-1).to(dtype)
    terms = losses.identity_terms([(logits[0], labels), (logits[1], labels.flip(0)), (logits[2], target)])
    plain = [losses.cross_entropy(logits[:1], labels), losses.cross_entropy(logits[1:2], labels.flip(0))]
    plain = torch.stack([*plain, losses.soft_label_divergence(logits[2], target)])
    same_with_gradients(terms, plain, logits, exact=dtype == torch.float64)


@pytest.mark.parametrize("kind", ["lsgan", "nsgan", "wgan"])
def test_adversarial_terms_as_gpus_compute_them(monkeypatch, kind):
    """One op equals plain PyTorch."""
    fake, real = ([s.requires_grad_() for s in scores(k)] for k in (0, 10))
    plain = losses.discriminator_term(fake, real, kind), losses.generator_term(fake, kind)
    monkeypatch.setattr(losses, "_fused", lambda tensors: True)
    fused = losses.discriminator_term(fake, real, kind), losses.generator_term(fake, kind)
    same_with_gradients(fused[0], plain[0], fake + real, exact=False)
    same_with_gradients(fused[1], plain[1], fake, exact=False)


def test_an_objective_without_terms_is_refused():
    for function in (losses.l1_terms, losses.identity_terms):
        with pytest.raises(ValueError, match="at least one; got 0 and 0"):
            function([])


# --- gradient penalty


@pytest.mark.parametrize(
    "changes", [{}, {"gan_type": "nsgan"}, {"norm": "in"}, {"norm": "ln"}, {"non_local": 1}], ids=str
)
def test_gradient_penalty_and_its_gradients(changes):
    config = DiscriminatorConfig(**{"dim": 4, "n_res": 1, "num_scales": 2} | changes)
    discriminator = Discriminator(config).double()
    with torch.no_grad():
        for k, parameter in enumerate(discriminator.parameters()):
            parameter.copy_(0.5 * noise(*parameter.shape, seed=500 + k))
    real = noise(3, 3, 16, 12)
    got_scores, got = losses.real_scores_and_penalty(discriminator, real)
    direction = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    parameters = list(discriminator.parameters())
    extra = sum(s.square().sum() for s in got_scores)
    ours = torch.autograd.grad((got * direction).sum() + extra, parameters, allow_unused=True)

    again = real.clone().requires_grad_()
    plain = discriminator(again)  # each scale's own gradient, squared, then summed: not that of the sum
    expected = 0
    for score in plain:
        value = score.sigmoid() if config.gan_type == "nsgan" else score
        (gradient,) = torch.autograd.grad(value.sum(), again, create_graph=True)
        expected = expected + gradient.square().sum(dim=(1, 2, 3))
    theirs = torch.autograd.grad(
        (expected * direction).sum() + sum(s.square().sum() for s in plain), parameters, allow_unused=True
    )
    for one, other in zip(got_scores, plain, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    for one, other, parameter in zip(ours, theirs, parameters, strict=True):
        if other is None:
            assert one is None or (one == 0).all()
        else:
            scale = max(other.abs().max().item(), 1e-3)
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10 * scale, msg=str(parameter.shape))


# --- labels of the teachers


class StubTeacher:
    """Logits that are a function of the picture; remembers how it was called."""

    def __init__(self, seed):
        self.weight, self.calls = noise(3 * 4 * 2, IDS, seed=seed), []

    def __call__(self, x, mode, dropout=False):
        self.calls.append((len(x), mode, dropout))
        return Appearance(x, (x.double().flatten(1) @ self.weight,), ())

    def soft(self, x):
        return (x.double().flatten(1) @ self.weight).softmax(dim=1)


PICTURES = noise(S, B, 3, 4, 2, seed=7)
APPEARANCE, STRUCTURE = torch.tensor([[0, 4, 2], [1, 1, 3]]), torch.tensor([[1, 1, 2], [0, 4, 2]])


def labels_of(style, teachers, batch_statistics=True, pictures=PICTURES):
    return teacher_labels(
        teachers, pictures, APPEARANCE, STRUCTURE, ids=IDS, style=style, batch_statistics=batch_statistics
    )


def soft_labels(teachers):
    total = torch.stack([sum(t.soft(x) + t.soft(x.flip(-1)) for t in teachers) for x in PICTURES])
    return total / total.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("count", [1, 2])
def test_soft_label(count):
    teachers = [StubTeacher(k) for k in range(count)]
    got = labels_of(0, teachers)
    torch.testing.assert_close(got, soft_labels(teachers), **EXACT)
    torch.testing.assert_close(got.sum(dim=-1), torch.ones(S, B, dtype=torch.float64), **EXACT)
    assert teachers[0].calls == [(4 * B, BatchNormMode(4, "update"), False)]  # eval mode: no dropout
    labels_of(0, teachers, batch_statistics=False)
    assert teachers[0].calls[1][1].statistics == "running"


def test_argmax_label():
    teachers = [StubTeacher(0)]
    got = labels_of(1, teachers)
    assert torch.equal(got, F.one_hot(soft_labels(teachers).argmax(dim=-1), IDS).double())


def test_labels_that_need_no_teacher():
    assert torch.equal(labels_of(2, []), F.one_hot(APPEARANCE, IDS).double())
    torch.testing.assert_close(labels_of(3, []), torch.full((S, B, IDS), 1 / IDS, dtype=torch.float64))
    for style in (0, 1, 4):
        with pytest.raises(ValueError, match=f"teacher_style {style} needs a teacher"):
            labels_of(style, [])


def test_label_of_the_two_ids():
    teachers = [StubTeacher(0)]
    soft, got = soft_labels(teachers), labels_of(4, teachers)
    for k in range(S):
        for n in range(B):
            two = {int(APPEARANCE[k, n]), int(STRUCTURE[k, n])}
            mass = sum(soft[k, n, i] for i in two)
            for i in range(IDS):
                assert math.isclose(got[k, n, i], soft[k, n, i] / mass if i in two else 0, abs_tol=1e-12)


def test_labels_of_low_precision_pictures_are_float32():
    assert labels_of(0, [StubTeacher(0)], pictures=PICTURES.bfloat16()).dtype == torch.float32
    assert labels_of(2, [], pictures=PICTURES.float()).dtype == torch.float32
