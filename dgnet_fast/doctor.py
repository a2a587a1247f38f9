"""python -m dgnet_fast.doctor [--json]: show what is installed on this machine, and which body serves which op."""

from __future__ import annotations

import argparse
import getpass
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import dgnet_fast
from dgnet_fast import _C, extension
from dgnet_fast.cli.parser import run_command
from dgnet_fast.extension.cpu_level import cpu_level, is_x86_64
from dgnet_fast.ops import registry


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda_devices() -> list[dict[str, Any]]:
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"sm_{properties.major}{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    return devices


def _cache_folders() -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in containers
        user = str(os.getuid())
    inductor = Path(tempfile.gettempdir()) / f"torchinductor_{user}"
    triton = Path(os.path.expanduser("~")) / ".triton" / "cache"
    return {
        "inductor": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(inductor)),
        "triton": os.environ.get("TRITON_CACHE_DIR", str(triton)),
    }


def report() -> dict[str, Any]:
    """Everything that the command prints, as values that JSON can hold."""
    cuda = _cuda_devices()
    return {
        "versions": {
            "dgnet_fast": dgnet_fast.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "numpy": _version("numpy"),
        },
        "extension": {**_C.build, "level": extension.level, "levels_built": list(extension.built_levels())},
        "cpu": {
            "level": f"x86-64-{cpu_level()}" if is_x86_64() else platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads_torch": torch.get_num_threads(),
            "threads_extension": _C.openmp_threads(),
            "malloc_keeps_large_blocks": dgnet_fast.malloc_kept,
            "allocator": "dgnet_fast" if dgnet_fast.allocator_installed else "torch",
        },
        "cuda": {"torch_built_for": torch.version.cuda, "devices": cuda},
        "caches": _cache_folders(),
        "forced_implementation": os.environ.get("DGNET_FAST_IMPL") or None,
        "ops": registry.served(("cpu", "cuda") if cuda else ("cpu",)),
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = ["versions:  " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())]
    built = facts["extension"]
    lines.append(
        f"extension: {built['cxx_compiler']}, pybind11 {built['pybind11']}, "
        f"bodies for {built['level']} (built: {', '.join(built['levels_built'])}); "
        + (f"CUDA bodies by {built['cuda_compiler']}" if built["cuda"] else "no CUDA bodies")
    )
    cpu = facts["cpu"]
    lines.append(
        f"cpu:       {cpu['level']}, {cpu['capability']}, {cpu['threads_torch']} threads "
        f"(extension {cpu['threads_extension']}), "
        f"malloc {'keeps' if cpu['malloc_keeps_large_blocks'] else 'maps'} large blocks, "
        f"tensors by {cpu['allocator']}'s allocator"
    )
    devices = facts["cuda"]["devices"]
    for index, device in enumerate(devices):
        lines.append(f"cuda:{index}:    {device['name']}, {device['capability']}, {device['memory_gib']} GiB")
    if not devices:
        lines.append(f"cuda:      no device (torch built for CUDA: {facts['cuda']['torch_built_for']})")
    lines += [f"cache:     {name} {folder}" for name, folder in facts["caches"].items()]
    if facts["forced_implementation"]:
        lines.append(f"forced:    DGNET_FAST_IMPL={facts['forced_implementation']}")
    lines.append("ops:")
    lines += [f"  {row['op']:<16} {row['device']:<5} {row['dtype']:<9} {row['body']}" for row in facts["ops"]]
    return lines


def body(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dgnet_fast.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    facts = report()
    if parser.parse_args(arguments).json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(_lines(facts)))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(arguments), "python -m dgnet_fast.doctor")


if __name__ == "__main__":
    sys.exit(main())
