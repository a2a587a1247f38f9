"""The Triton body without a GPU: values under the interpreter, and compiled ahead for sm_80 and sm_90."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from dgnet_fast.ops.registry import DTYPES  # noqa: E402
from tests.ops.ahead import CAPABILITIES, assert_lean, launch, record  # noqa: E402
from tests.ops.interpreted import interpreted  # noqa: E402


def test_values_under_the_interpreter():
    results = interpreted("interpret_loss_l1.py")
    assert results["terms"] < 1e-6
    # the interpreter truncates to bfloat16 where a GPU rounds; float32 and float16 are exact
    assert len(results["gradients"]) == 9 and max(results["gradients"]) < 2**-7
    assert results["gradients"][1] < 1e-7 and results["gradients"][5] < 1e-7
    assert results["strides"] and results["one"]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("dtype", "crossing"), [(torch.bfloat16, 1), (torch.float32, 0), (torch.float32, 2)], ids=str
)
def test_launches_compile_ahead_without_spills(monkeypatch, dtype, crossing, capability):
    """A step's pairs at batch 8: three of pictures, structure and appearance codes."""
    from dgnet_fast.kernels import loss_l1 as kernels

    launches = record(monkeypatch, kernels, ["forward_pairs", "backward_pairs"])

    def drawn(shape, kind, channels_last):
        order = (0, 1, 4, 2, 3) if channels_last else tuple(range(len(shape)))
        lying = [shape[k] for k in (0, 1, 3, 4, 2)] if channels_last else shape
        return torch.empty(lying, dtype=kind, device="meta").permute(order)

    pictures, structures, codes = (2, 8, 3, 256, 128), (2, 8, 128, 64, 32), (2, 8, 8192)
    orders = [crossing == 1] * 3 + [False, False]
    predictions = [drawn(pictures, dtype, orders[0])] * 3 + [
        drawn(s, dtype, False) for s in (structures, codes)
    ]
    targets = [drawn(pictures, torch.float32, crossing == 2)] * 3 + predictions[3:]
    a = launch("loss_l1", "forward", predictions=predictions, targets=targets, channels_last=orders)
    assert {pair.crossing for pair in a.pairs[:3]} == {crossing}
    sizes = [x[0].numel() for x in predictions]
    kinds, needed = [DTYPES.index(dtype)] * 5, [True] * 4 + [False]
    launch("loss_l1", "backward", grad=a.means, signs=a.signs, sizes=sizes, dtypes=kinds, needed=needed)
    assert len(launches) == 2
    assert_lean(launches, capability, 128)
