"""What compiled GPU code uses, read by the cuobjdump that comes with triton."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dgnet_fast.ops.native import _C

#: No spills: a kernel that spills has a stack or local memory. ptxas of Triton 3.6 and 3.7 keeps one or two 8-byte values of
#: three of the Triton kernels on the stack (3.9's none); that many are harmless.
STACK = 16


def is_lean(usage: dict[str, int]) -> bool:
    """Whether a kernel of this resource usage spills nothing that matters."""
    return usage["STACK"] <= STACK and usage["LOCAL"] == 0


def resource_usage(binary: Path) -> dict[str, dict[str, int]]:
    """Registers, stack, shared and local memory of each kernel in a cubin or an extension, by (mangled) name.

    Kernels built for several architectures are kept apart by their architecture, appended as " sm_90".
    """
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this triton brings no cuobjdump")
    text = subprocess.run(
        [tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True
    ).stdout
    usage, architecture = {}, ""
    for line in text.splitlines():
        if match := re.match(r"arch = (sm_\d+)", line):
            architecture = " " + match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1] + architecture
        elif fields := re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line):
            usage[name] = {field: int(value) for field, value in fields}
    return usage


def check_built_kernels(source: str, kernels: dict[str, int]) -> None:
    """The extension holds each kernel of csrc/``source``.cu as often as ``kernels`` says, for both architectures, and none
    spills or takes more than 64 registers (four blocks of 256 threads on a multiprocessor).
    """
    usage = resource_usage(_C.__file__)
    for kernel, count in kernels.items():
        for architecture in ("sm_80", "sm_90"):
            if architecture not in _C.build["cuda_compiler"]:
                continue
            found = {
                name: use
                for name, use in usage.items()
                if f"_{source}_cu_" in name and kernel in name and name.endswith(architecture)
            }
            assert len(found) == count, (kernel, architecture, list(found))
            for name, use in found.items():
                assert use["STACK"] == use["LOCAL"] == 0, (name, use)
                assert use["REG"] <= 64, (name, use)
