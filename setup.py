"""Build of dgnet_fast's extensions: CMake + ninja + pybind11 over csrc/. Metadata is in pyproject.toml.

The operators' bodies need no torch. A wheel for x86-64 holds them built for three levels of the CPU (`_C_v2`, `_C_v3`,
`_C_v4`; `dgnet_fast/extension` chooses at import), an editable installation for the level of this machine only, which
is quicker to build; other processors have one plain `_C`. `_allocator` (csrc/cpu_allocator.cpp) is for one version of torch and built
where pip finds torch in the environment that it installs into; without it tensors come from torch's own allocator.

Environment read at build time:
    DGNET_FAST_LEVELS          levels of x86-64 to build for, such as "v2 v3 v4"
    DGNET_FAST_CUDA=0          leave the CUDA bodies out even where nvcc is found (default 1)
    DGNET_FAST_TORCH           folder of the torch package that _allocator is built for, where the build itself does not
                               find it (uv, python -m build)
    CMAKE_CUDA_ARCHITECTURES   compute capabilities, such as "80;90" (default)
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str, folder_attribute: str) -> str:
    """Path of cmake or ninja: the Python package of that name if it is importable, else the one on PATH."""
    try:
        folder = getattr(importlib.import_module(name), folder_attribute)
        path = shutil.which(name, path=str(folder))
    except (ImportError, AttributeError):
        path = None
    path = path or shutil.which(name)
    if path is None:
        raise RuntimeError(f"building dgnet_fast needs {name}: install it, or let pip use build isolation")
    return path


def installed_torch() -> tuple[Path, str] | None:
    """Folder and version of the torch that dgnet_fast will find; pip's isolated build cannot import it."""
    spec = importlib.util.find_spec("torch")
    folder = Path(sysconfig.get_path("platlib")) / "torch"
    if spec and spec.origin:
        folder = Path(spec.origin).parent
    folder = Path(os.environ.get("DGNET_FAST_TORCH", folder))
    needed = [folder / "include/c10/core/CPUAllocator.h", folder / "lib/libc10.so", folder / "version.py"]
    version = None
    if all(path.is_file() for path in needed):
        version = re.search(r"^__version__ = '([^']+)'", needed[2].read_text(), re.MULTILINE)
    print(
        f"dgnet_fast: _allocator is {f'for torch {version[1]}' if version else 'left out, no torch'} in {folder}"
    )
    return (folder, version[1]) if version else None


def levels_of(editable: bool) -> list[str]:
    """The levels of x86-64 to build the bodies for; none: one plain build."""
    cpu = runpy.run_path(str(ROOT / "dgnet_fast" / "extension" / "cpu_level.py"))
    known = cpu["LEVELS"] if cpu["is_x86_64"]() else ()
    wanted = re.findall(r"[^\s,;]+", os.environ.get("DGNET_FAST_LEVELS", ""))
    for level in wanted:
        if level not in known:
            raise RuntimeError(
                f"DGNET_FAST_LEVELS has {level!r}; allowed here: {', '.join(known) or 'nothing'}"
            )
    if wanted:
        return sorted(set(wanted))
    own = cpu["cpu_level"]()
    return [own] if editable and own in known else list(known)


class CMakeBuild(build_ext):
    """Builds every extension of this package by the one CMake project in csrc/."""

    def finalize_options(self) -> None:
        self.levels = levels_of(bool(self.inplace or self.editable_mode))
        names = [f"_C_{level}" for level in self.levels] or ["_C"]
        self.distribution.ext_modules = [Extension(f"dgnet_fast.{name}", sources=[]) for name in names]
        if TORCH:  # one whose headers it cannot read does not keep dgnet_fast from being installed
            self.distribution.ext_modules.append(
                Extension("dgnet_fast._allocator", sources=[], optional=True)
            )
        super().finalize_options()

    def build_extensions(self) -> None:
        import pybind11

        if self.inplace or self.editable_mode:
            # Builds that are not made again would be found beside the new ones.
            kept = {Path(self.get_ext_filename(ext.name)).name for ext in self.extensions}
            suffix = Path(self.get_ext_filename("_C")).name.removeprefix("_C")
            for old in (ROOT / "dgnet_fast").glob(f"_C*{suffix}"):
                if old.name not in kept:
                    old.unlink()

        target = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve()
        # Not self.build_temp: pip makes that a new folder each time, and every build would start from
        # nothing.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        # A cache made by pip's isolated build names tools in a folder that is gone: configure afresh each
        # time.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        build.mkdir(parents=True, exist_ok=True)
        cuda = os.environ.get("DGNET_FAST_CUDA", "1") != "0"
        cmake = tool("cmake", "CMAKE_BIN_DIR")
        arguments = [
            "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DDGNET_FAST_LEVELS={';'.join(self.levels)}",
            f"-DDGNET_FAST_CUDA={'ON' if cuda else 'OFF'}",
        ]  # fmt: skip
        if architectures := os.environ.get("CMAKE_CUDA_ARCHITECTURES"):
            arguments.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
        if TORCH:
            arguments += [f"-DDGNET_FAST_TORCH={TORCH[0]}", f"-DDGNET_FAST_TORCH_VERSION={TORCH[1]}"]
        subprocess.run([cmake, "-S", str(ROOT / "csrc"), "-B", str(build), *arguments], check=True)
        needed = [ext.name.rpartition(".")[2] for ext in self.extensions if not ext.optional]
        subprocess.run([cmake, "--build", str(build), "--target", *needed], check=True)
        for ext in self.extensions:
            name = ext.name.rpartition(".")[2]
            if (
                name not in needed
                and subprocess.run([cmake, "--build", str(build), "--target", name]).returncode
            ):
                self.warn(f"{ext.name} could not be built and is left out")
                for old in (self.get_ext_fullpath(ext.name), ROOT / self.get_ext_filename(ext.name)):
                    Path(old).unlink(missing_ok=True)


TORCH = installed_torch()


setup(
    license="Apache-2.0",
    packages=[*find_packages(include=["dgnet_fast", "dgnet_fast.*"]), "dgnet_fast.kernels"],
    # A top-level package called `kernels` would clash with the one on PyPI.
    package_dir={"dgnet_fast.kernels": "kernels"},
    ext_modules=[Extension("dgnet_fast._C", sources=[])],  # CMakeBuild says which
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
