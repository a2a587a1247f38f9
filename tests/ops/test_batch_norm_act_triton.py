"""The Triton body without a GPU: values under the interpreter, and compiled ahead for sm_80 and sm_90."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton")

from tests.ops.ahead import CAPABILITIES, assert_lean, launch, record  # noqa: E402
from tests.ops.interpreted import interpreted  # noqa: E402


def test_values_under_the_interpreter():
    results = interpreted("interpret_batch_norm_act.py")
    assert len(results["rows"]) == 8 * 3
    assert {tuple(row["kernels"]) for row in results["rows"]} == {(3, 3), (2, 2), (1, 2)}
    for row in results["rows"]:
        # For bfloat16 the errors are those beyond a truncation, as in test_adain_act_triton.py.
        for mine, pytorch in zip(row["triton"], row["pytorch"], strict=True):
            allowed = 2 * pytorch + 1e-5 if row["dtype"] == "torch.float16" else 1e-6
            assert mine <= allowed, row
    for far in results["far"]:
        assert far["mean"] < 1.2e-7 and far["var"] < 1e-5, far


KERNELS = [f"{way}_{part}" for way in ("forward", "backward") for part in ("sums", "merge", "apply")]
WHOLE = ["forward_whole", "backward_whole", "backward_groups"]
#: What a training step of E_a launches: shape, residual, channels_last, dtype.
LAUNCHES = [
    ((32, 64, 128, 64), False, True, torch.bfloat16),
    ((32, 256, 16, 8), False, True, torch.bfloat16),
    ((32, 512, 32, 16), True, True, torch.bfloat16),
    ((32, 2048, 16, 8), True, True, torch.bfloat16),
    ((32, 256, 64, 32), True, False, torch.float32),
]


def launched(monkeypatch, *cases):
    """The launches of a forward and a backward pass in four groups of each case, as in LAUNCHES."""
    from dgnet_fast.kernels import batch_norm_act as kernels

    launches = record(monkeypatch, kernels, KERNELS + WHOLE)
    expected = 0
    for shape, residual, channels_last, dtype in cases:
        order = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(shape, dtype=dtype, device="meta", memory_format=order)
        weight = torch.empty(shape[1], device="meta")
        added = x if residual else None
        forward, backward = kernels.kernels_of(x, 4)
        expected += forward + backward * (2 if residual else 1)
        given = {"x": x, "weight": weight, "groups": 4, "relu": True, "eps": 1e-5}
        a = launch("batch_norm_act", "forward", **given, bias=weight, residual=added)
        kept = {"y": a.y, "mean": a.mean, "var": a.var}
        for again in (a.y, None) if residual else (None,):
            launch(
                "batch_norm_act", "backward", grad_y=a.y, grad_again=again, **kept, **given,
                bias=None if residual else weight, needs_residual=residual,
            )  # fmt: skip
    assert len(launches) == expected, (len(launches), expected)
    return launches


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_launches_compile_ahead_without_spills(monkeypatch, capability):
    launches = launched(monkeypatch, *LAUNCHES)
    merging = [launch for launch in launches if launch.function.__name__.endswith("merge")]
    assert_lean(merging, capability, 128)  # a handful of programs
    whole = [launch for launch in launches if launch.function.__name__ in WHOLE]
    assert_lean(whole, capability, 128)  # 512 threads
    passes = [launch for launch in launches if launch not in merging + whole]
    for kernel in assert_lean(passes, capability, 96):  # five blocks of 128 threads on a multiprocessor
        assert re.search(r"ld\.global\S*\.v4\.b32", kernel.asm["ptx"]), kernel.name  # sixteen bytes a thread


def test_sizes_of_one_compile(monkeypatch):
    """Triton makes constants of arguments that are 1."""
    assert_lean(launched(monkeypatch, ((4, 1, 1, 1), True, False, torch.float32)), 90, 96)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", [s for s, *_ in LAUNCHES] + [(1, 3, 5, 7), (2, 70000, 1, 1)], ids=str)
def test_slices_cover_every_pixel_once(shape, channels_last):
    from dgnet_fast.kernels import batch_norm_act as kernels

    for groups in {1, shape[0]}:
        order = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(shape, device="meta", memory_format=order)
        cut = kernels._Launch(x, groups)
        units, channels, pixels, slice_pixels = cut.sizes
        assert units * groups * pixels * channels == x.numel()
        assert (cut.grid[0] - 1) * slice_pixels < pixels <= cut.grid[0] * slice_pixels
        assert cut.grid[1] * cut.tile["COLUMNS"] >= channels and cut.grid[2] == groups * units
        assert cut.workspace.numel() == cut.grid[0] * cut.grid[2] * 2 * channels
        assert max(cut.grid[1:]) < 65536 and cut.merge_grid[1] < 65536
        if x.numel() > 2 * 10**6:
            assert 500 <= cut.grid[0] * cut.grid[1] * cut.grid[2] <= 8192
