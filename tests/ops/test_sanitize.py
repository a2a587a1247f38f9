"""The C++ bodies, and the CUDA ones run on a CPU, under AddressSanitizer and UndefinedBehaviorSanitizer:
what `make sanitize` builds and runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")


def has_sanitizers(folder: Path) -> bool:
    """Whether the compiler links the sanitizers' run-time libraries, which some systems package apart."""
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    command = [COMPILER, "-fsanitize=address,undefined", "-fopenmp", str(source), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.thorough
@pytest.mark.skipif(not (COMPILER and shutil.which("make")), reason="no make or no C++ compiler")
def test_bodies_are_clean(tmp_path):
    if not has_sanitizers(tmp_path):
        pytest.skip("the C++ compiler has no AddressSanitizer and UndefinedBehaviorSanitizer")
    done = subprocess.run(
        ["make", "sanitize", "CXX=c++"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    clean = {body: n for n, body in re.findall(r"(\d+) cases of the (\S+) bodies clean", done.stdout)}
    assert int(clean["C++"]) > 1000 and int(clean["CUDA"]) > 200
