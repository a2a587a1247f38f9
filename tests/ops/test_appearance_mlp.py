"""appearance_mlp on the CPU: its body and the reference against float64, autograd, autocast, errors, compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import appearance_mlp, appearance_mlp_reference

LOW = [torch.bfloat16, torch.float16]
# Rows, parts of the code, features in, of two hidden layers, channels.
SIZES = [(3, 4, 7, 5, 6, 3), (1, 1, 3, 2, 2, 1), (9, 2, 33, 16, 8, 5)]


def arguments(
    sizes, dtype=torch.float32, weight_dtype=None, seed=0
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(code, weights, biases), leaves that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    batch, parts, features, first, second, channels = sizes
    widths = (features, first, second, 2 * channels)

    def draw(*shape: int, to: torch.dtype | None = weight_dtype or dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(to).requires_grad_()

    code = draw(batch, parts * features, to=dtype)
    weights = [draw(2 * parts, n_out, n_in) for n_in, n_out in zip(widths[:-1], widths[1:], strict=True)]
    return code, weights, [draw(2 * parts, n_out) for n_out in widths[1:]]


def run(function, code, weights, biases, slope=0.2, dtype=None):
    """Parameters and the gradients of all arguments, computed in dtype."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in (code, *weights, *biases)]
    result = function(leaves[0], leaves[1:4], leaves[4:], negative_slope=slope)
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(7)).to(result)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


def errors(results, exact):
    return [((r.double() - e).norm() / e.norm()).item() for r, e in zip(results, exact, strict=True)]


@pytest.mark.parametrize("slope", [0.2, 0.0, 1.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float32_against_float64(sizes, slope):
    given = arguments(sizes)
    exact = run(appearance_mlp_reference, *given, slope, torch.float64)
    for result, expected in zip(run(appearance_mlp, *given, slope), exact, strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-6 * (1 + expected.abs().max()))


@pytest.mark.parametrize("weight_dtype", [None, torch.float32], ids=["one_dtype", "float32_weights"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision_error_at_most_twice_pytorchs(dtype, weight_dtype):
    given = arguments((8, 4, 64, 48, 40, 16), dtype, weight_dtype)
    exact = run(appearance_mlp_reference, *given, dtype=torch.float64)
    ours, theirs = run(appearance_mlp, *given), run(appearance_mlp_reference, *given)
    for mine, pytorch in zip(errors(ours, exact), errors(theirs, exact), strict=True):
        assert mine <= 2 * pytorch, (errors(ours, exact), errors(theirs, exact))
    assert [g.dtype for g in ours[1:]] == [dtype] + [weight_dtype or dtype] * 6


@pytest.mark.parametrize("function", [appearance_mlp, appearance_mlp_reference])
def test_is_one_small_network_per_part_and_kind(function):
    sizes = (3, 4, 7, 5, 6, 3)
    code, weights, biases = arguments(sizes, torch.float64)
    result = function(code, weights, biases, negative_slope=0.2)
    assert result.shape == (2, 8, 3, 3)
    for mlp in range(8):
        x = code[:, 7 * (mlp % 4) : 7 * (mlp % 4 + 1)]
        for k in range(3):
            x = F.linear(x, weights[k][mlp], biases[k][mlp])
            x = x if k == 2 else F.leaky_relu(x, 0.2)
        kind, block = divmod(mlp, 4)  # the scales' MLPs come first
        torch.testing.assert_close(result[kind, 2 * block], x[:, :3])
        torch.testing.assert_close(result[kind, 2 * block + 1], x[:, 3:])


def test_strided_arguments():
    code, weights, biases = arguments(SIZES[0])
    wide = torch.randn(3, 4, 4 * 7)[:, 1]
    turned = [w.detach().transpose(1, 2).contiguous().transpose(1, 2) for w in weights]
    exact = run(appearance_mlp_reference, wide, weights, biases, dtype=torch.float64)
    for result, expected in zip(run(appearance_mlp, wide, turned, biases), exact, strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_where_they_are_needed():
    code, weights, biases = arguments(SIZES[0])
    _, *expected = run(appearance_mlp_reference, code, weights, biases)
    grad = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(7))
    fixed = [[t.detach() for t in group] for group in (weights, biases)]
    (of_code,) = torch.autograd.grad(appearance_mlp(code, *fixed, negative_slope=0.2), code, grad)
    torch.testing.assert_close(of_code, expected[0])
    result = appearance_mlp(code.detach(), weights, biases, negative_slope=0.2)
    of_parameters = torch.autograd.grad(result, [*weights, *biases], grad)
    torch.testing.assert_close(list(of_parameters), expected[1:])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype, batch):
    sizes = (batch, *SIZES[0][1:])
    code, weights, biases = arguments(sizes, dtype)
    op = torch.ops.dgnet_fast.appearance_mlp.default
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, (code, *weights, *biases, 0.2), test_utils=tests)
    detached = [t.detach() for t in (code, *weights, *biases)]
    parameters, *hidden = op(*detached, 0.2)
    backward = torch.ops.dgnet_fast.appearance_mlp_backward.default
    for needs in ((True, True), (False, True), (True, False)):
        given = (torch.randn_like(parameters), detached[0], *hidden, *detached[1:4], 0.2, *needs)
        torch.library.opcheck(backward, given, test_utils=tests)


@pytest.mark.parametrize("function", [appearance_mlp, appearance_mlp_reference])
def test_gradcheck_in_float64(function):
    code, weights, biases = arguments((2, 2, 3, 2, 3, 1), torch.float64)

    def flat(*leaves):
        return function(leaves[0], list(leaves[1:4]), list(leaves[4:]), negative_slope=0.3)

    assert torch.autograd.gradcheck(flat, (code, *weights, *biases))


def test_second_derivatives():
    code, weights, biases = arguments((2, 1, 3, 2, 2, 1), torch.float64)

    def of_code(c):
        return appearance_mlp_reference(c, weights, biases, negative_slope=0.3)

    assert torch.autograd.gradgradcheck(of_code, (code,))
    result = appearance_mlp(code, weights, biases, negative_slope=0.3)
    (grad,) = torch.autograd.grad(result.square().sum(), code, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


def test_compiled_is_eager(fresh_compiler):
    given = arguments(SIZES[0])

    def block(code, weights, biases, negative_slope):
        return appearance_mlp(F.relu(code), weights, biases, negative_slope=negative_slope) * 2

    eager, graph = run(block, *given), run(torch.compile(block, fullgraph=True), *given)
    torch.testing.assert_close(graph, eager)


def test_autocast_lowers_the_code_and_keeps_float32_weights():
    code, weights, biases = arguments((8, 4, 64, 48, 40, 16))
    lowered = (code.detach().bfloat16().requires_grad_(), weights, biases)
    expected = run(appearance_mlp, *lowered)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = run(appearance_mlp, code, weights, biases)
        wide = run(appearance_mlp, code, weights, biases, dtype=torch.float64)
    expected[1] = expected[1].float()  # the code's gradient
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    torch.testing.assert_close(wide, run(appearance_mlp, code, weights, biases, dtype=torch.float64))


def changed(**changes):
    code, weights, biases = arguments(SIZES[0])
    given = {"code": code, "weights": weights, "biases": biases, "negative_slope": 0.2}
    for name, value in changes.items():
        if isinstance(value, dict):
            for index, item in value.items():
                given[name][index] = item
        else:
            given[name] = value
    return given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": torch.zeros(3, 4, 7)}, "code must have 2 dimensions"),
        ({"code": torch.zeros(0, 28)}, "code must not be empty"),
        ({"code": torch.zeros(3, 28, dtype=torch.int32)}, "code must have one of the dtypes"),
        ({"code": torch.zeros(3, 29)}, r"a part of 7 for every two of the 8 MLPs .* got shape \(3, 29\)"),
        ({"weights": []}, "must be 3 each, got 0 and 3"),
        ({"weights": {0: torch.zeros(7, 5, 7)}}, "every two of the 7 MLPs"),
        ({"weights": {1: torch.zeros(8, 6, 4)}}, r"weights\[1\] must have shape \(8, out, 5\)"),
        ({"weights": {1: torch.zeros(8, 6)}}, r"weights\[1\] must have 3 dimensions"),
        ({"weights": {2: torch.zeros(8, 5, 6)}, "biases": {2: torch.zeros(8, 5)}}, "even number of outputs"),
        ({"weights": {2: torch.zeros(8, 6, 6).bfloat16()}}, r"weights\[2\] must have the code's dtype"),
        ({"weights": {2: torch.zeros(8, 6, 6, device="meta")}}, r"weights\[2\] must be on the code's device"),
        ({"biases": {0: torch.zeros(8, 4)}}, r"biases\[0\] must have shape \(8, 5\), got \(8, 4\)"),
        ({"negative_slope": -0.1}, "negative_slope must be at least 0, got -0.1"),
    ],
)
@pytest.mark.parametrize("function", [appearance_mlp, appearance_mlp_reference])
def test_bad_input_is_named(function, change, message):
    with pytest.raises(ValueError, match=message):
        function(**changed(**change))


def test_non_finite_values_pass_through():
    code, weights, biases = arguments(SIZES[0])
    code = code.detach().clone()
    code[1, 0] = torch.nan
    result = appearance_mlp(code, weights, biases, negative_slope=0.2)
    parts = result.isnan()
    # Row 1 of what the first part drives: the first block's two layers, scale and shift.
    assert parts[:, :2, 1].all() and parts.sum() == parts[:, :2, 1].numel()
