"""The Triton body without a GPU: values under the interpreter, and compiled ahead for sm_80 and sm_90."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from tests.ops.cubin import LEAN, resource_usage  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_values_under_the_interpreter():
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "DGNET_FAST_IMPL": "triton",
        "PYTHONPATH": str(ROOT),
    }
    script = Path(__file__).with_name("interpret_adain_act.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 24
    for row in rows:
        # The interpreter truncates to bfloat16 where a GPU rounds to nearest, so for bfloat16 the errors are
        # those beyond a truncation; test_adain_act_cuda.py asks for twice PyTorch's error, on a GPU.
        for mine, pytorch in zip(row["triton"], row["pytorch"], strict=True):
            allowed = 2 * pytorch + 1e-5 if row["dtype"] == "torch.float16" else 3e-6
            assert mine <= allowed, row


# Types of the arguments of each kernel by name; what is not listed is a constexpr.
POINTERS = {"x": "low", "residual": "low", "y": "low", "grad_y": "low", "grad_x": "low"}
SCALARS = {"pixels": "i32", "channels": "i32", "slice_pixels": "i32", "slope": "fp32", "eps": "fp32"}
CONSTANTS = {"AFFINE": True, "RESIDUAL": True, "BLOCK": 2048, "ROWS": 64, "COLUMNS": 32, "SLICES": 8}
KERNELS = [
    ("forward_planes", {"WHOLE": True}, 4),
    ("forward_planes", {"WHOLE": True, "BLOCK": 8192}, 8),
    ("forward_planes", {"WHOLE": False, "BLOCK": 4096}, 8),
    ("backward_planes", {"WHOLE": True}, 4),
    ("backward_planes", {"WHOLE": True, "BLOCK": 8192}, 8),
    ("backward_planes", {"WHOLE": False, "BLOCK": 4096}, 8),
    ("forward_slices", {}, 4),
    ("forward_apply", {}, 4),
    ("backward_slices", {}, 4),
    ("backward_apply", {}, 4),
]


def compile_ahead(name: str, changes: dict, warps: int, capability: int, low: str) -> bytes:
    """The cubin of a kernel of kernels/adain_act.py for a GPU that need not be here."""
    from dgnet_fast.kernels import adain_act as kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(kernels, name)
    constants = {**CONSTANTS, **changes}
    signature, constexprs, attributes = {}, {}, {}
    for index, argument in enumerate(function.arg_names):
        stem = argument.removesuffix("_ptr")
        if argument in constants:
            signature[argument] = "constexpr"
            constexprs[argument] = constants[argument]
        elif argument.endswith("_ptr"):
            signature[argument] = "*" + (low if stem in POINTERS else "fp32")
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = SCALARS[argument]
    source = ASTSource(function, signature, constexprs, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("name", "changes", "warps"), KERNELS)
def test_compiles_ahead_without_spills(tmp_path, name, changes, warps, capability):
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compile_ahead(name, changes, warps, capability, "bf16"))
    ((kernel, usage),) = resource_usage(cubin).items()
    assert kernel == name
    assert {key: usage[key] for key in LEAN} == LEAN
    assert usage["REG"] <= 128, usage  # at least two blocks of 8 warps on a multiprocessor
