"""loss_l1 on the CPU: the C++ body and the reference against float64, orders, dtypes, errors, compile."""

from __future__ import annotations

import pytest
import torch

from dgnet_fast.ops import loss_l1, loss_l1_reference

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
#: Shape, dtypes of prediction and target, whether they lie in channels_last order: sizes around a block of signs
#: (1024), pictures that blocks cut anywhere, both crossings.
MIXED = [
    ((2, 1, 3, 23, 41), BF16, F32, (True, False)),
    ((2, 3, 3, 5, 7), F32, F32, (False, True)),
    ((2, 2, 5, 17, 9), F16, BF16, (True, False)),
    ((2, 2, 8, 16, 8), BF16, BF16, (True, True)),
    ((2, 1024), F32, F16, (False, False)),
    ((2, 3, 683), F32, BF16, (False, False)),
    ((2, 1), F32, F32, (False, False)),
]


def ordered(x, channels_last):
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if channels_last else x


def draw_pairs(cases, seed=0):
    """Pairs that differ by both signs and, in every fifth place, by nothing."""
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = [], []
    for shape, dtype, target_dtype, (channels_last, target_channels_last) in cases:
        x = torch.randn(shape, generator=generator).to(BF16)  # a value of every dtype
        target = torch.randn(shape, generator=generator)
        target.view(-1)[::5] = x.view(-1)[::5].float()
        predictions.append(ordered(x.to(dtype), channels_last))
        targets.append(ordered(target.to(target_dtype), target_channels_last))
    return predictions, targets


def outcome(function, predictions, targets, dtype=None):
    """The terms and the predictions' gradients, for a fixed gradient of the terms."""
    predictions, targets = (
        [x if dtype is None else x.to(dtype) for x in xs] for xs in (predictions, targets)
    )
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in predictions]
    terms = function(leaves, targets)
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(terms.shape, generator=generator).to(terms.dtype)
    return terms.detach(), torch.autograd.grad(terms, leaves, grad)


def by_hand(predictions, targets):
    rows = []
    for x, target in zip(predictions, targets, strict=True):
        rows.append([(x[s].double() - target[s].double()).abs().sum() / x[s].numel() for s in range(len(x))])
    return torch.tensor(rows, dtype=F64)


@pytest.mark.parametrize("forced", ["cpp", "reference"])
@pytest.mark.parametrize("case", MIXED, ids=str)
def test_against_float64(monkeypatch, case, forced):
    monkeypatch.setenv("DGNET_FAST_IMPL", forced)
    predictions, targets = draw_pairs([case])
    terms, (gradient,) = outcome(loss_l1, predictions, targets)
    assert terms.dtype == F32
    torch.testing.assert_close(terms.double(), by_hand(predictions, targets), rtol=1e-6, atol=0)
    # a gradient is a sign times one number: its rounding alone
    _, (expected,) = outcome(loss_l1_reference, predictions, targets)
    assert gradient.dtype == case[1] and gradient.stride() == predictions[0].stride()
    assert torch.equal(gradient, expected)
    assert (gradient.reshape(-1)[::5] == 0).all() or predictions[0].dim() == 5


def test_many_pairs_at_once():
    predictions, targets = draw_pairs(MIXED)
    terms, gradients = outcome(loss_l1, predictions, targets)
    torch.testing.assert_close(terms.double(), by_hand(predictions, targets), rtol=1e-6, atol=0)
    for got, wanted in zip(gradients, outcome(loss_l1_reference, predictions, targets)[1], strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("shape", [(3, 2, 128, 9, 5), (1, 8, 3, 64, 32), (5, 33000)], ids=str)
def test_larger_ones(shape):
    crossed = len(shape) == 5
    predictions, targets = draw_pairs(
        [(shape, BF16, F32, (crossed, False)), (shape, F32, F32, (False, crossed))]
    )
    terms, gradients = outcome(loss_l1, predictions, targets)
    torch.testing.assert_close(terms.double(), by_hand(predictions, targets), rtol=1e-6, atol=0)
    for got, wanted in zip(gradients, outcome(loss_l1_reference, predictions, targets)[1], strict=True):
        assert torch.equal(got, wanted)


def test_float64_is_plain_pytorch_to_the_bit():
    predictions, targets = draw_pairs(MIXED)
    ours = outcome(loss_l1, predictions, targets, F64)
    theirs = outcome(loss_l1_reference, predictions, targets, F64)
    assert ours[0].dtype == F64 and torch.equal(ours[0], theirs[0])
    assert all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))
    x = torch.randn(2, 5, dtype=F64)  # one float64 tensor among others
    terms = loss_l1([x, x.float()], [x.float() + 1, x.float()])
    assert terms.dtype == F64 and torch.allclose(terms, torch.tensor([[1.0], [0.0]], dtype=F64))


def test_gradcheck_of_the_reference():
    predictions, targets = draw_pairs(
        [((2, 3, 4), F64, F64, (False, False)), ((2, 5), F64, F64, (False, False))]
    )
    predictions = [(x.double() + 3).requires_grad_() for x in predictions]  # no kinks nearby
    targets = [x.double() - 3 for x in targets]
    assert torch.autograd.gradcheck(lambda *x: loss_l1_reference(x, targets), predictions)
    assert torch.autograd.gradcheck(lambda *x: loss_l1(x, targets), predictions)


def test_only_what_needs_a_gradient_has_one():
    predictions, targets = draw_pairs(MIXED[:3])
    leaf = predictions[1].requires_grad_()
    targets = [x.requires_grad_() for x in targets]
    loss_l1(predictions, targets).sum().backward()
    assert leaf.grad is not None and all(x.grad is None for x in (predictions[0], predictions[2], *targets))
    assert not loss_l1(predictions[::2], targets[::2]).requires_grad


def test_views_and_slices():
    whole = torch.randn(3, 2, 4, 3, 6, 5)
    target = torch.randn(2, 4, 3, 6, 10)[..., ::2]
    for x in (whole[1], whole.flip(1)[0].transpose(0, 1)[:2], whole.permute(0, 1, 2, 4, 5, 3)[2, :, :, :, :]):
        shown = target.expand(x.shape) if x.shape == target.shape else torch.zeros(x.shape)
        terms, (gradient,) = outcome(loss_l1, [x], [shown])
        expected, (wanted,) = outcome(loss_l1_reference, [x], [shown])
        torch.testing.assert_close(terms, expected)
        assert torch.equal(gradient, wanted)


def test_equal_bits_for_any_number_of_threads():
    predictions, targets = draw_pairs(
        [((2, 8, 3, 64, 32), F32, F32, (True, False)), ((2, 99999), F32, F32, (0, 0))]
    )
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            terms, gradients = outcome(loss_l1, predictions, targets)
            results.append([terms, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_not_finite_values_pass():
    x = torch.zeros(2, 3, requires_grad=True)
    terms = loss_l1([x], [torch.tensor([[0.0, float("nan"), 1.0], [1.0, 2.0, float("inf")]])])
    assert terms[0, 0].isnan() and terms[0, 1] == float("inf")
    (gradient,) = torch.autograd.grad(terms.sum(), x)
    assert torch.equal(gradient, torch.tensor([[0.0, 0, -1], [-1, -1, -1]]) / 3)  # NaN's is 0, as PyTorch's
    terms = loss_l1([x], [torch.ones(2, 3)])
    (gradient,) = torch.autograd.grad(terms, x, torch.full((1, 2), float("nan")))
    assert gradient.isnan().all()


def test_opcheck_and_compile():
    torch._dynamo.reset()
    predictions, targets = draw_pairs(MIXED[:5])
    orders = [case[3][0] for case in MIXED[:5]]
    leaves = [x.requires_grad_() for x in predictions]
    torch.library.opcheck(torch.ops.dgnet_fast.loss_l1.default, (leaves, targets, orders))
    compiled = torch.compile(loss_l1, fullgraph=True)
    terms, gradients = outcome(compiled, predictions, targets)
    expected, wanted = outcome(loss_l1, predictions, targets)
    assert torch.equal(terms, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))


def test_within_a_compiled_graph():
    torch._dynamo.reset()
    weight = torch.randn(6, 3, 1, 1)
    pictures, target = (
        torch.randn(4, 3, 6, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 2, 6, 6, 5),
    )

    def loss(weight, terms):
        made = torch.nn.functional.conv2d(pictures, weight).unflatten(0, (2, 2))
        return terms([made, made[:, :, :3]], [target, target[:, :, 3:]]).sum()

    gradients = []
    for function in (
        torch.compile(lambda w: loss(w, loss_l1), fullgraph=True),
        lambda w: loss(w, loss_l1_reference),
    ):
        leaf = weight.clone().requires_grad_()
        gradients += torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close(*gradients)


def test_double_backward_raises():
    x = torch.randn(2, 3, requires_grad=True)
    terms = loss_l1([x], [torch.zeros(2, 3)])
    (gradient,) = torch.autograd.grad(terms.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="loss_l1_reference"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        ([], [], "at least one; got 0 and 0"),
        ([torch.zeros(2, 3)], [], "equally many"),
        ([torch.zeros(2)], [torch.zeros(2)], r"predictions\[0\] must have shape \(S, B, ...\)"),
        ([torch.zeros(2, 0)], [torch.zeros(2, 0)], "not empty"),
        ([torch.zeros(2, 3), torch.zeros(3, 3)], [torch.zeros(2, 3), torch.zeros(3, 3)], r"\[1\].*got \(3, 3\)"),
        ([torch.zeros(2, 3)], [torch.zeros(2, 4)], r"targets\[0\] must have its prediction's shape \(2, 3\)"),
        ([torch.zeros(2, 3)], [torch.zeros(2, 3, dtype=torch.int32)], "int32"),
        ([torch.zeros(2, 3)], [torch.zeros(2, 3, device="meta")], "device cpu, got meta"),
    ],
)  # fmt: skip
def test_bad_input(predictions, targets, message):
    for function in (loss_l1, loss_l1_reference):
        with pytest.raises(ValueError, match=message):
            function(predictions, targets)
