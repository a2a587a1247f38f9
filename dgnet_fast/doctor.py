"""Show what is installed on this machine, what was built, and which body serves which op.

dgnet-fast doctor
dgnet-fast doctor --json             as JSON
dgnet-fast doctor --json FILE        also to a file
"""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import dgnet_fast
from dgnet_fast.cli.output import STANDARD_OUTPUT, show_tables, write_tables
from dgnet_fast.cli.parser import Parser, check_output, program, run_command
from dgnet_fast.cli.shared_options import add_json


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda_devices() -> list[dict[str, Any]]:
    import torch

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
    import torch

    from dgnet_fast import _C, extension
    from dgnet_fast.extension.cpu_level import cpu_level, is_x86_64
    from dgnet_fast.ops import registry

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
            "amx": _C.conv3x3_amx(),
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
        f"cpu:       {cpu['level']}, {cpu['capability']}{', AMX for conv3x3' if cpu['amx'] else ''}, {cpu['threads_torch']} threads "
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


def _tables(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The report in the form of every --json: one table of facts, and one of the ops."""
    rows = []
    for group in ("versions", "extension", "cpu"):
        rows += [[f"{group} {name.replace('_', ' ')}", _text(value)] for name, value in facts[group].items()]
    rows.append(["cuda torch built for", _text(facts["cuda"]["torch_built_for"])])
    rows += [
        [f"cuda:{index}", f"{one['name']}, {one['capability']}, {one['memory_gib']} GiB"]
        for index, one in enumerate(facts["cuda"]["devices"])
    ]
    rows += [[f"cache {name}", folder] for name, folder in facts["caches"].items()]
    rows.append(["forced implementation", _text(facts["forced_implementation"])])
    ops = [[one["op"], one["device"], one["dtype"], one["body"]] for one in facts["ops"]]
    return [
        {"title": "This machine", "columns": ["", "value"], "rows": rows, "notes": []},
        {
            "title": "Bodies of the ops",
            "columns": ["op", "device", "dtype", "body"],
            "rows": ops,
            "notes": [],
        },
    ]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def parser() -> Parser:
    made = Parser(prog=program("doctor"), description=__doc__)
    add_json(made)
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    check_output("--json", args.json)
    facts = report()
    if args.json == STANDARD_OUTPUT:
        show_tables(_tables(facts), args.json)
        return 0
    if args.json:
        write_tables(args.json, _tables(facts))
    print("\n".join(_lines(facts)))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("doctor"))


if __name__ == "__main__":
    sys.exit(main())
