"""Build of dgnet_fast's extensions: CMake + ninja + pybind11 over csrc/. Metadata is in pyproject.toml.

`_C`, the operators' bodies, needs no torch. `_allocator` (csrc/cpu_allocator.cpp) is for one version of torch and built
where pip finds torch in the environment that it installs into; without it tensors come from torch's own allocator.

Environment read at build time:
    DGNET_FAST_NATIVE=0        no -march=native: for wheels that travel to other CPUs (default 1)
    DGNET_FAST_CUDA=0          leave the CUDA bodies out even where nvcc is found (default 1)
    DGNET_FAST_TORCH           folder of the torch package that _allocator is built for, where the build itself does not
                               find it (uv, python -m build)
    CMAKE_CUDA_ARCHITECTURES   compute capabilities, such as "80;90" (default)
"""

from __future__ import annotations

import importlib.util
import os
import re
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


class CMakeBuild(build_ext):
    """Builds every extension of this package by the one CMake project in csrc/."""

    def build_extensions(self) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve()
        # Not self.build_temp: pip makes that a new folder each time, and every build would start from
        # nothing.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        # A cache made by pip's isolated build names tools in a folder that is gone: configure afresh each
        # time.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        build.mkdir(parents=True, exist_ok=True)
        native = os.environ.get("DGNET_FAST_NATIVE", "1") != "0"
        cuda = os.environ.get("DGNET_FAST_CUDA", "1") != "0"
        cmake = tool("cmake", "CMAKE_BIN_DIR")
        arguments = [
            "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DDGNET_FAST_NATIVE={'ON' if native else 'OFF'}",
            f"-DDGNET_FAST_CUDA={'ON' if cuda else 'OFF'}",
        ]  # fmt: skip
        if architectures := os.environ.get("CMAKE_CUDA_ARCHITECTURES"):
            arguments.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
        if TORCH:
            arguments += [f"-DDGNET_FAST_TORCH={TORCH[0]}", f"-DDGNET_FAST_TORCH_VERSION={TORCH[1]}"]
        subprocess.run([cmake, "-S", str(ROOT / "csrc"), "-B", str(build), *arguments], check=True)
        for ext in self.extensions:
            name = ext.name.rpartition(".")[2]
            done = subprocess.run([cmake, "--build", str(build), "--target", name], check=not ext.optional)
            if done.returncode:
                self.warn(f"{ext.name} could not be built and is left out")
                for old in (self.get_ext_fullpath(ext.name), ROOT / self.get_ext_filename(ext.name)):
                    Path(old).unlink(missing_ok=True)


TORCH = installed_torch()
EXTENSIONS = [Extension("dgnet_fast._C", sources=[])]
if TORCH:  # one whose headers it cannot read does not keep dgnet_fast from being installed
    EXTENSIONS.append(Extension("dgnet_fast._allocator", sources=[], optional=True))


setup(
    license="Apache-2.0",
    packages=[*find_packages(include=["dgnet_fast", "dgnet_fast.*"]), "dgnet_fast.kernels"],
    # A top-level package called `kernels` would clash with the one on PyPI.
    package_dir={"dgnet_fast.kernels": "kernels"},
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
