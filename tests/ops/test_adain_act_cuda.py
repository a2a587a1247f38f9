"""adain_act on CUDA: the built code's resources anywhere, values and speed rules on a GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import ADAIN_ACT, AdainActCase, adain_act_inputs
from dgnet_fast.ops import adain_act, adain_act_reference
from dgnet_fast.ops.native import _C
from tests.ops.cubin import check_built_kernels

KERNELS = ["planes", "slices", "apply"]


@pytest.mark.skipif(not _C.build["cuda"], reason="the extension was built without nvcc")
def test_built_kernels_use_no_local_memory():
    counts = {
        f"{direction}_{stem}": 6 if stem == "planes" else 3
        for direction in ("forward", "backward")
        for stem in KERNELS
    }
    check_built_kernels("adain_act", counts)


def results(function, inputs, slope, padding, grad_y, dtype=None):
    leaves = [t if t is None else t.to(dtype or t.dtype).clone().requires_grad_() for t in inputs]
    y = function(*leaves, negative_slope=slope, padding=padding)
    given = [leaf for leaf in leaves if leaf is not None]
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, given, grad_y.to(y.dtype)))]


ODD = [
    AdainActCase("odd", (2, 5, 7, 3), True, 0.2, True),
    AdainActCase("large", (1, 33, 150, 101), False, None, False),
]


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "cuda"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2, 6])
@pytest.mark.parametrize("case", [*ADAIN_ACT, *ODD], ids=lambda case: case.name)
def test_values_on_the_gpu(monkeypatch, case, padding, dtype, channels_last, implementation):
    if implementation == "cuda" and not _C.build["cuda"]:
        pytest.skip("the extension was built without nvcc")
    padding = min(padding, *(size - 1 for size in case.shape[2:]))
    monkeypatch.setenv("DGNET_FAST_IMPL", implementation)
    inputs = adain_act_inputs(case, dtype=dtype, device="cuda", channels_last=channels_last)
    x, scale, shift, _ = (None if t is None else t.double() for t in inputs)
    far = adain_act_reference(x, scale, shift, padding=padding).abs() > 1e-3
    grad_y = (torch.randn(far.shape, device="cuda") * far).to(dtype)
    exact = results(adain_act_reference, inputs, case.negative_slope, padding, grad_y, torch.float64)
    ours = results(adain_act, inputs, case.negative_slope, padding, grad_y)
    theirs = results(adain_act_reference, inputs, case.negative_slope, padding, grad_y)
    for mine, pytorch, expected in zip(ours, theirs, exact, strict=True):
        error, allowed = (mine - expected).abs().max(), 2 * (pytorch - expected).abs().max()
        assert error <= allowed + 3e-6 * (1 + expected.abs().max()), (error, allowed)
    again = results(adain_act, inputs, case.negative_slope, padding, grad_y)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "cuda"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_residual_within_a_padded_buffer_on_the_gpu(monkeypatch, channels_last, implementation):
    if implementation == "cuda" and not _C.build["cuda"]:
        pytest.skip("the extension was built without nvcc")
    monkeypatch.setenv("DGNET_FAST_IMPL", implementation)
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 40, 10, 9, device="cuda").contiguous(memory_format=order)
    first = adain_act(x, padding=2)
    y = adain_act(x, None, None, first[:, :, 2:-2, 2:-2], padding=1)
    torch.testing.assert_close(y, adain_act_reference(x, None, None, adain_act_reference(x), padding=1))


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["triton", "cuda"])
def test_side_stream_and_graph_capture(monkeypatch, implementation):
    monkeypatch.setenv("DGNET_FAST_IMPL", implementation)
    x = torch.randn(4, 16, 32, 16, device="cuda").contiguous(memory_format=torch.channels_last)
    adain_act(x)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = adain_act(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(y, adain_act_reference(x))


@pytest.mark.gpu
def test_devices_may_not_mix():
    with pytest.raises(ValueError, match="scale must be on x's device"):
        adain_act(torch.zeros(1, 2, 3, 3, device="cuda"), torch.zeros(1, 2), torch.zeros(1, 2))
