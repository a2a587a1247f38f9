"""loss_identity on the CPU: against the formula in float64, dtypes, errors, compile."""

from __future__ import annotations

import pytest
import torch

from dgnet_fast.ops import loss_identity, loss_identity_reference

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
#: Rows a stream, dtype of the logits, dtype of the target.
TERMS = [
    (3, F32, torch.int64),
    (1, BF16, torch.int64),
    (3, F32, F32),
    (5, F16, torch.int64),
    (6, BF16, F32),
    (4, F32, BF16),
    (9, BF16, torch.int64),
]
STREAMS = 2


def draw_terms(terms=TERMS, ids=37, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits, targets = [], []
    for batch, dtype, target in terms:
        logits.append((4 * torch.randn(STREAMS * batch, ids, generator=generator)).to(dtype))
        if target == torch.int64:
            targets.append(torch.randint(ids, (STREAMS, batch), generator=generator))
        else:
            q = torch.rand(STREAMS, batch, ids, generator=generator)
            q = q * (torch.rand(q.shape, generator=generator) < 0.5)  # half of them 0
            targets.append((q / q.sum(dim=-1, keepdim=True)).to(target))
    return logits, targets


def outcome(function, logits, targets, dtype=None):
    """The terms and the logits' gradients, for a fixed gradient of the terms."""
    leaves = [x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in logits]
    targets = [t if dtype is None or t.dtype == torch.int64 else t.to(dtype) for t in targets]
    terms = function(leaves, targets)
    grad = torch.randn(terms.shape, generator=torch.Generator().manual_seed(7)).to(terms.dtype)
    return terms.detach(), torch.autograd.grad(terms, leaves, grad)


def by_hand(logits, targets):
    rows = []
    for x, target in zip(logits, targets, strict=True):
        p = x.double().softmax(dim=1).view(*target.shape[:2], -1)
        if target.dtype == torch.int64:
            rows.append(-p.gather(2, target[:, :, None]).log().mean(dim=(1, 2)))
        else:
            q = target.double()
            rows.append(
                torch.where(q > 0, q * (q.clamp_min(1e-300).log() - p.log()), 0).sum(dim=2).mean(dim=1)
            )
    return torch.stack(rows)


def check(function):
    logits, targets = draw_terms()
    terms, gradients = outcome(function, logits, targets)
    assert terms.dtype == F32
    torch.testing.assert_close(terms.double(), by_hand(logits, targets), rtol=2e-6, atol=1e-6)
    _, exact = outcome(loss_identity_reference, logits, targets, F64)
    for got, wanted, x in zip(gradients, exact, logits, strict=True):
        step = torch.finfo(x.dtype).eps
        assert got.dtype == x.dtype and got.shape == x.shape
        assert ((got.double() - wanted).abs().max() <= step * wanted.abs().max() + 1e-7).all()


@pytest.mark.parametrize("function", [loss_identity, loss_identity_reference])
def test_against_the_formula(function):
    check(function)


def test_gradcheck():
    logits, targets = draw_terms([(2, F64, torch.int64), (3, F64, F64)], ids=5)
    logits = [x.requires_grad_() for x in logits]
    assert torch.autograd.gradcheck(lambda *x: loss_identity_reference(x, targets), logits)
    assert torch.autograd.gradcheck(lambda *x: loss_identity(x, targets), logits)


def test_only_what_needs_a_gradient_has_one():
    logits, targets = draw_terms(TERMS[:3])
    leaf, target = logits[1].requires_grad_(), targets[2].requires_grad_()
    loss_identity(logits, targets).sum().backward()
    assert leaf.grad is not None and logits[0].grad is None and target.grad is None


def test_opcheck_and_compile():
    torch._dynamo.reset()
    logits, targets = draw_terms()
    leaves = [x.requires_grad_() for x in logits]
    torch.library.opcheck(torch.ops.dgnet_fast.loss_identity.default, (leaves, targets))
    terms, gradients = outcome(torch.compile(loss_identity, fullgraph=True), logits, targets)
    expected, wanted = outcome(loss_identity, logits, targets)
    assert torch.equal(terms, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))


def test_double_backward_raises():
    logits, targets = draw_terms(TERMS[:1])
    leaf = logits[0].requires_grad_()
    (gradient,) = torch.autograd.grad(loss_identity([leaf], targets).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="loss_identity_reference"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        ([], [], "at least one; got 0 and 0"),
        (
            [(4, 5), (4, 6)],
            [(2, 2), (2, 2)],
            r"logits\[1\] must have shape .*ids of all others, got \(4, 6\)",
        ),
        ([(4, 5)], [(2, 3)], r"targets\[0\] must be .*got torch.int64 of \(2, 3\)"),
        ([(4, 5)], [(2, 2, 4)], r"targets\[0\] must be .*got torch.float32 of \(2, 2, 4\)"),
        ([(4, 5), (4, 5)], [(2, 2), (1, 4)], r"targets\[1\] must be"),
        ([(0, 5)], [(2, 0)], "not empty"),
    ],
)
def test_bad_shapes(logits, targets, message):
    kinds = {2: torch.int64, 3: F32}
    given = [torch.zeros(shape) for shape in logits], [torch.zeros(s, dtype=kinds[len(s)]) for s in targets]
    for function in (loss_identity, loss_identity_reference):
        with pytest.raises(ValueError, match=message):
            function(*given)


def test_bad_dtypes():
    with pytest.raises(ValueError, match=r"logits\[0\].*int32"):
        loss_identity([torch.zeros(2, 3, dtype=torch.int32)], [torch.zeros(2, 1, dtype=torch.int64)])
    with pytest.raises(ValueError, match=r"targets\[0\].*int32"):
        loss_identity([torch.zeros(2, 3)], [torch.zeros(2, 1, dtype=torch.int32)])
