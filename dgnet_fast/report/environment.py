"""The environment of a run: the contents of `environment.json`."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgnet_fast.report.files import write_json

_PACKAGE = Path(__file__).resolve().parents[1]
# Variables that change speed or numbers. Comparisons of speed must state the allocator on both sides.
_VARIABLES = ("GLIBC_TUNABLES", "LD_PRELOAD", "OMP_NUM_THREADS", "DGNET_FAST_IMPL", "CUDA_VISIBLE_DEVICES",
              "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TRITON_INTERPRET")  # fmt: skip


def collect_environment() -> dict[str, Any]:
    """Versions, machine, threads, GPUs, git commit and date, as JSON-serialisable values.

    Keys: date (UTC, ISO 8601), dgnet_fast, git_commit (None outside a checkout; "-dirty" is appended for
    changed tracked files), python, torch, torch_cuda, numpy, triton, platform, cpu, cpu_capability (the
    vector instructions that torch uses), cpu_count (this process may use), torch_threads, gpus (names),
    variables (of the environment, as far as they change speed or numbers).
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "dgnet_fast": _version("dgnet-fast"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "numpy": np.__version__,
        "triton": _version("triton"),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def write_environment(run_folder: str | os.PathLike[str], **facts: Any) -> Path:
    """Write `environment.json` into a run folder, which is created if it is missing. Returns the path of the file.

    ``facts`` are what only the run knows, such as the device and the precision in force; they come first.
    """
    path = Path(run_folder) / "environment.json"
    write_json(path, facts | collect_environment())
    return path


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _git_commit() -> str | None:
    # A package installed inside somebody else's checkout is not tracked there: that commit would say nothing.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
