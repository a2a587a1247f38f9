"""layer_norm_act on CUDA: the built code's resources anywhere, values and speed rules on a GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import LAYER_NORM_ACT, LayerNormActCase, layer_norm_act_inputs
from dgnet_fast.ops import layer_norm_act, layer_norm_act_reference
from dgnet_fast.ops.native import _C
from tests.ops.cubin import check_built_kernels

#: Kernels and how often each is built: per element type, and for vectors and single values.
KERNELS = {
    "forward_moments": 6,
    "forward_apply": 3,
    "backward_sums": 3,
    "backward_merge": 1,
    "backward_apply": 3,
    "backward_channels": 1,
}


@pytest.mark.skipif(not _C.build["cuda"], reason="the extension was built without nvcc")
def test_built_kernels_use_no_local_memory():
    check_built_kernels("layer_norm_act", KERNELS)


def results(function, inputs, padding, grad_y, dtype=None):
    leaves = [t.to(dtype or t.dtype).clone().requires_grad_() for t in inputs]
    y = function(*leaves, negative_slope=0.2, padding=padding)
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, leaves, grad_y.to(y.dtype)))]


ODD = [LayerNormActCase("odd", (2, 5, 7, 3)), LayerNormActCase("large", (1, 33, 150, 101))]


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "cuda"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("case", [*LAYER_NORM_ACT, *ODD], ids=lambda case: case.name)
def test_values_on_the_gpu(monkeypatch, case, padding, dtype, channels_last, implementation):
    if implementation == "cuda" and not _C.build["cuda"]:
        pytest.skip("the extension was built without nvcc")
    monkeypatch.setenv("DGNET_FAST_IMPL", implementation)
    inputs = layer_norm_act_inputs(case, dtype=dtype, device="cuda", channels_last=channels_last)
    far = layer_norm_act_reference(*(t.double() for t in inputs), padding=padding).abs() > 1e-3
    grad_y = (torch.randn(far.shape, device="cuda") * far).to(dtype)
    exact = results(layer_norm_act_reference, inputs, padding, grad_y, torch.float64)
    ours = results(layer_norm_act, inputs, padding, grad_y)
    theirs = results(layer_norm_act_reference, inputs, padding, grad_y)
    for mine, pytorch, expected in zip(ours, theirs, exact, strict=True):
        error, allowed = (mine - expected).abs().max(), 2 * (pytorch - expected).abs().max()
        assert error <= allowed + 3e-6 * (1 + expected.abs().max()), (error, allowed)
    again = results(layer_norm_act, inputs, padding, grad_y)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "cuda"])
def test_graph_capture(monkeypatch, implementation):
    if implementation == "cuda" and not _C.build["cuda"]:
        pytest.skip("the extension was built without nvcc")
    monkeypatch.setenv("DGNET_FAST_IMPL", implementation)
    x = torch.randn(4, 16, 32, 16, device="cuda").contiguous(memory_format=torch.channels_last)
    gamma, beta = torch.rand(16, device="cuda"), torch.rand(16, device="cuda")
    layer_norm_act(x, gamma, beta)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer_norm_act(x, gamma, beta)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(y, layer_norm_act_reference(x, gamma, beta))
