"""The Triton body without a GPU: values under the interpreter, and compiled ahead for sm_80 and sm_90."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.cases import ADAIN_ACT  # noqa: E402
from tests.ops.ahead import CAPABILITIES, assert_lean, launch, record  # noqa: E402
from tests.ops.interpreted import interpreted  # noqa: E402


def test_values_under_the_interpreter():
    rows = interpreted("interpret_adain_act.py")
    assert len(rows) == 24
    for row in rows:
        # The interpreter truncates to bfloat16 where a GPU rounds to nearest, so for bfloat16 the errors are
        # those beyond a truncation; test_adain_act_cuda.py asks for twice PyTorch's error, on a GPU.
        for mine, pytorch in zip(row["triton"], row["pytorch"], strict=True):
            allowed = 2 * pytorch + 1e-5 if row["dtype"] == "torch.float16" else 3e-6
            assert mine <= allowed, row


KERNELS = [f"{way}_{part}" for way in ("forward", "backward") for part in ("planes", "slices", "apply")]
#: Shape and paddings; the last plane is too large for registers.
SHAPES = {
    "decoder": (ADAIN_ACT[2].shape, (0, 1)),
    "structure": (ADAIN_ACT[3].shape, (1,)),
    "large": ((8, 32, 256, 128), (1,)),
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("name", "dtype", "channels_last"),
    [
        ("decoder", torch.bfloat16, False),
        ("decoder", torch.bfloat16, True),
        ("decoder", torch.float32, True),
        ("structure", torch.bfloat16, False),
        ("large", torch.bfloat16, False),
    ],
)
def test_launches_compile_ahead_without_spills(monkeypatch, name, dtype, channels_last, capability):
    from dgnet_fast.kernels import adain_act as kernels

    launches = record(monkeypatch, kernels, KERNELS)
    shape, paddings = SHAPES[name]
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, device="meta", memory_format=order)
    code = torch.empty(shape[:2], device="meta")
    scale = code if name == "decoder" else None
    residual = x if name == "decoder" else None
    for padding in paddings:
        given = {"x": x, "scale": scale, "shift": scale, "negative_slope": 0.2, "padding": padding}
        y = launch("adain_act", "forward", **given, residual=residual, eps=1e-5).y
        assert y.shape[2:] == (shape[2] + 2 * padding, shape[3] + 2 * padding)
        needs = residual is not None
        launch("adain_act", "backward", grad_y=y, **given, mean=code, rstd=code, needs_residual=needs)
    assert len(launches) == len(paddings) * (4 if channels_last else 2)
    assert_lean(launches, capability, 128)
