"""batch_norm_act on CUDA: the built code's resources anywhere, values and graph capture on a GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import BATCH_NORM_ACT, BatchNormActCase, batch_norm_act_inputs
from dgnet_fast.ops import batch_norm_act, batch_norm_act_reference
from dgnet_fast.ops.native import _C
from tests.ops.cubin import check_built_kernels

#: Kernels and how often each is built: per element type, order, and for packs and single values.
KERNELS = {
    "forward_sums": 12,
    "forward_merge": 6,
    "forward_apply": 12,
    "backward_sums": 12,
    "backward_merge": 1,
    "backward_apply": 12,
}


@pytest.mark.skipif(not _C.build["cuda"], reason="the extension was built without nvcc")
def test_built_kernels_use_no_local_memory():
    check_built_kernels("batch_norm_act", KERNELS)


def results(function, given, groups, grad_y, dtype=None):
    """y, the gradients of everything given, mean and variance."""
    leaves = [t.to(dtype or t.dtype).clone().requires_grad_() for t in given]
    y, mean, var = function(*leaves, groups=groups)
    grads = torch.autograd.grad(y, leaves, grad_y.to(y.dtype))
    return [t.detach().double() for t in (y, *grads, mean, var)]


CASES = [
    *BATCH_NORM_ACT,
    BatchNormActCase("odd", (6, 5, 7, 3), 2),
    BatchNormActCase("step", (32, 64, 128, 64), 4),
]


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "cuda"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("residual", "mean"), [(True, 0), (False, 100)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_on_the_gpu(monkeypatch, case, residual, mean, dtype, channels_last, implementation):
    if implementation == "cuda" and not _C.build["cuda"]:
        pytest.skip("the extension was built without nvcc")
    monkeypatch.setenv("DGNET_FAST_IMPL", implementation)
    given = batch_norm_act_inputs(case, dtype=dtype, device="cuda", channels_last=channels_last)
    if mean:
        given = (given[0] * 1e-2 + mean, *given[1:])
    given = given if residual else given[:3]
    # No gradient where rounding decides the ReLU.
    z = batch_norm_act_reference(*(t.double() for t in given), groups=case.groups, relu=False)[0]
    grad_y = (torch.randn(z.shape, device="cuda") * (z.abs() > 2e-2)).to(dtype)
    exact = results(batch_norm_act_reference, given, case.groups, grad_y, torch.float64)
    ours = results(batch_norm_act, given, case.groups, grad_y)
    theirs = results(batch_norm_act_reference, given, case.groups, grad_y)
    for mine, pytorch, expected in zip(ours, theirs, exact, strict=True):
        error, allowed = (mine - expected).abs().max(), 2 * (pytorch - expected).abs().max()
        # float32 has 7.6e-6 between neighbours of 100, a thousandth of the deviation of 1e-2
        room = 1e-3 if mean else 3e-6
        assert error <= allowed + room * (1 + expected.abs().max()), (error, allowed)
    again = results(batch_norm_act, given, case.groups, grad_y)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "cuda"])
def test_graph_capture(monkeypatch, implementation):
    if implementation == "cuda" and not _C.build["cuda"]:
        pytest.skip("the extension was built without nvcc")
    monkeypatch.setenv("DGNET_FAST_IMPL", implementation)
    x = torch.randn(4, 16, 32, 16, device="cuda").contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(16, device="cuda"), torch.rand(16, device="cuda")
    batch_norm_act(x, weight, bias, groups=2)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, mean, var = batch_norm_act(x, weight, bias, groups=2)
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected = batch_norm_act_reference(x, weight, bias, groups=2)
    for got, wanted in zip((y, mean, var), expected, strict=True):
        torch.testing.assert_close(got, wanted)
