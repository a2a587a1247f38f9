"""Runs tests/training/fake_cuda_parts.py: what a step gives a GPU, without one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.fake_cuda_parts import OPTIONS

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")
GUARD = """#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>)
}
"""
"""PyTorch asks for a device's guard before copies and for nodes of gradients; its CPU builds have none for CUDA."""


@pytest.mark.thorough
def test_every_part_stays_on_the_device(tmp_path):
    guard = []
    if not torch.backends.cuda.is_built():
        if not COMPILER:
            pytest.skip("no C++ compiler")
        folder = Path(torch.__file__).parent
        (tmp_path / "guard.cpp").write_text(GUARD)
        guard = [str(tmp_path / "guard.so")]
        command = [
            COMPILER,
            "-std=c++20",
            "-shared",
            "-fPIC",
            str(tmp_path / "guard.cpp"),
            f"-I{folder / 'include'}",
        ]
        subprocess.run([*command, f"-L{folder / 'lib'}", "-lc10", "-o", *guard], check=True)
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.fake_cuda_parts", *guard]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("clean: ") == 2 * len(OPTIONS)
