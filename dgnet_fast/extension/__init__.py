"""The compiled extension: the build for this CPU is chosen and loaded here, once, and malloc is set up for large tensors.

torch is imported first, so that the extension shares its OpenMP runtime. A wheel holds the same bodies built for the
levels v2, v3 and v4 of x86-64 (`_C_v2`, …); an editable installation only the one of the machine that built it; other
processors have one plain build, `_C`. Whichever is chosen is `dgnet_fast._C` from then on.

Environment read at the import:
    DGNET_FAST_CPU=v2|v3|v4   take the build of a lower level than the CPU's, to compare them
    DGNET_FAST_MALLOC=0       leave malloc and torch's allocator as they are
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import torch  # before the extension: see above

from dgnet_fast.extension.cpu_level import LEVELS, cpu_level, is_x86_64

PACKAGE = Path(__file__).parents[1]


def built_levels(folder: Path = PACKAGE) -> dict[str, Path]:
    """The builds in ``folder`` by level, lowest first; "plain" is the one for no particular CPU."""
    found = {}
    for level, name in [("plain", "_C"), *((level, f"_C_{level}") for level in LEVELS)]:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if (path := folder / f"{name}{suffix}").is_file():
                found.setdefault(level, path)
    return found


def choose(built: dict[str, Path], cpu: str, wanted: str | None = None) -> str:
    """The level of ``built`` that serves a CPU of level ``cpu``: the highest that it can run, or ``wanted``.

    Raises ImportError, in one line, where there is none.
    """
    names = ", ".join(built) or "none"
    usable = [level for level in built if level == "plain" or level <= cpu]
    if wanted is not None:
        if wanted not in usable:
            raise ImportError(
                f"DGNET_FAST_CPU is {wanted!r}; allowed on this machine: {', '.join(usable) or 'nothing'} "
                f"(the CPU is x86-64-{cpu}; built: {names})"
            )
        return wanted
    if usable:
        return usable[-1]
    if not built:
        raise ImportError(
            f"dgnet_fast's extension is not built in {PACKAGE} for Python {sys.version_info[0]}.{sys.version_info[1]}: "
            "run `pip install -e .` in the checkout, or leave its folder to use the installed package"
        )
    if cpu < "v2":
        raise ImportError(
            "dgnet_fast needs a CPU of level x86-64-v2 (SSE 4.2; made since about 2009); this one is older"
        )
    raise ImportError(
        f"dgnet_fast was built for x86-64-{next(iter(built))} and this CPU is x86-64-{cpu}: install it again on this machine"
    )


def _load() -> tuple[str, ModuleType]:
    built = built_levels()
    level = choose(built, cpu_level() if is_x86_64() else "plain", os.environ.get("DGNET_FAST_CPU") or None)
    name = "dgnet_fast._C"
    loader = importlib.machinery.ExtensionFileLoader(name, str(built[level]))
    spec = importlib.util.spec_from_file_location(name, built[level], loader=loader)
    assert spec is not None  # as it is without a loader
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[name] = module
    return level, module


def _install_allocator() -> bool:
    # torch's own allocator then asks for huge pages
    if os.environ.get("THP_MEM_ALLOC_ENABLE", "0") != "0":
        return False
    try:
        allocator = importlib.import_module("dgnet_fast._allocator")
    except ImportError:  # built without torch, or for another one
        return False
    return allocator.torch_version == torch.__version__ and allocator.install()


level, _C = _load()

#: Whether glibc's malloc was told to keep large blocks. False with DGNET_FAST_MALLOC=0 and without glibc.
malloc_kept: bool = os.environ.get("DGNET_FAST_MALLOC", "1") != "0" and _C.keep_large_blocks()

#: Whether the memory of CPU tensors comes from `_allocator`. False where `malloc_kept` is, where the package was built
#: without torch or for another version of it, with another malloc than glibc's, and with torch's THP_MEM_ALLOC_ENABLE.
allocator_installed: bool = malloc_kept and _install_allocator()
