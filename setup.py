"""Build of dgnet_fast._C: CMake + ninja + pybind11 over csrc/, without torch. Metadata is in pyproject.toml.

Environment read at build time:
    DGNET_FAST_NATIVE=0        no -march=native: for wheels that travel to other CPUs (default 1)
    DGNET_FAST_CUDA=0          leave the CUDA bodies out even where nvcc is found (default 1)
    CMAKE_CUDA_ARCHITECTURES   compute capabilities, such as "80;90" (default)
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
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


class CMakeBuild(build_ext):
    """Builds every extension of this package by the one CMake project in csrc/."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
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
        subprocess.run([cmake, "-S", str(ROOT / "csrc"), "-B", str(build), *arguments], check=True)
        subprocess.run([cmake, "--build", str(build)], check=True)


setup(
    license="Apache-2.0",
    packages=[*find_packages(include=["dgnet_fast", "dgnet_fast.*"]), "dgnet_fast.kernels"],
    # A top-level package called `kernels` would clash with the one on PyPI.
    package_dir={"dgnet_fast.kernels": "kernels"},
    ext_modules=[Extension("dgnet_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
