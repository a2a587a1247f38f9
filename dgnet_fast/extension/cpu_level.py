"""Which instructions this CPU has, as one of the levels of the x86-64 psABI (v2: SSE 4.2, v3: AVX2 and FMA, v4: AVX-512).

setup.py runs this file too, so it imports nothing of the package.
"""

from __future__ import annotations

import platform
from pathlib import Path

FLAGS = {
    "v2": ("cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"),
    "v3": ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"),
    "v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}
"""What each level adds to the one before, by the kernel's names: only what the system has switched on is listed."""

LEVELS = tuple(FLAGS)


def is_x86_64() -> bool:
    """Whether programs of this Python are for x86-64."""
    return platform.machine().lower() in ("x86_64", "amd64")


def level_of(flags: set[str]) -> str:
    """The highest level whose ``flags`` (and those of the levels below) are all there; "v1" below v2."""
    reached = "v1"
    for level, needed in FLAGS.items():
        if not flags.issuperset(needed):
            break
        reached = level
    return reached


def cpu_level(cpuinfo: str | Path = "/proc/cpuinfo") -> str:
    """The level of this machine's CPU: "v1" to "v4", and "v2" where the system does not tell, which is all that other
    packages of ours (NumPy, PyTorch) ask for as well.
    """
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "v2"
    found = [set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")]
    return level_of(set.intersection(*found)) if found else "v2"  # kinds of cores may differ
