"""Compiles the Triton launches of a body ahead of time, for GPUs that need not be here.

The body runs on meta tensors with its kernels replaced by recorders, so that what is compiled is what would be
launched: the types, constants and specialisations (1, multiples of 16, None) of the real shapes.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dgnet_fast.ops.bodies import Arguments
from tests.ops.cubin import is_lean, resource_usage

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.int64: "i64",
}
CAPABILITIES = (80, 90)


class Launch:
    """A recorded launch: the kernel, its signature as Triton's compiler takes it, and its options."""

    def __init__(self, function: Any, arguments: tuple, keywords: dict[str, Any]) -> None:
        self.function = function
        options = {"num_warps", "num_stages"}
        self.options = {key: keywords.pop(key) for key in sorted(options & keywords.keys())}
        values = {**dict(zip(function.arg_names, arguments, strict=False)), **keywords}
        assert values.keys() == set(function.arg_names), (function.__name__, values.keys())
        self.constants: dict[tuple[int, ...], Any] = {}
        self.attributes: dict[tuple[int, ...], Any] = {}
        constexprs = {p.name for p in function.params if p.is_constexpr}
        self.signature = {
            name: self._type((index,), values[name], name in constexprs)
            for index, name in enumerate(function.arg_names)
        }

    def _type(self, path: tuple[int, ...], value: Any, constant: bool = False) -> Any:
        """The type of the argument at `path`, as the launcher would have it; of a tuple, those of its entries."""
        if constant or value is None or (type(value) is int and value == 1):
            self.constants[path] = value
            return "constexpr"
        if isinstance(value, tuple):
            return tuple(self._type((*path, k), entry) for k, entry in enumerate(value))
        if isinstance(value, torch.Tensor):
            found = "*" + TYPES[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        else:
            found = "fp32" if isinstance(value, float) else "i32"
            aligned = isinstance(value, int) and value % 16 == 0
        if aligned:
            self.attributes[path] = [["tt.divisibility", 16]]
        return found

    @property
    def key(self) -> tuple:
        """Launches of one key compile to the same code."""
        parts = (self.signature, self.constants, self.attributes, self.options)
        return self.function.__name__, *(repr(part) for part in parts)

    def compile(self, capability: int) -> tuple[Any, dict[str, int]]:
        """The kernel for compute capability `capability` / 10; its registers, stack, shared and local memory."""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        source = ASTSource(self.function, self.signature, self.constants, self.attributes)
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(kernel.asm["cubin"])
            ((name, usage),) = resource_usage(cubin).items()
        assert name == self.function.__name__
        return kernel, usage


class _Recorder:
    def __init__(self, function: Any, launches: list[Launch]) -> None:
        self.function, self.launches = function, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **keywords: Any) -> None:
            assert all(0 < size < 2**31 for size in grid[:1]) and all(0 < size < 65536 for size in grid[1:])
            self.launches.append(Launch(self.function, arguments, keywords))

        return launch


def record(monkeypatch, kernels: ModuleType, names: list[str]) -> list[Launch]:
    """Replaces the named kernels of a module; the list returned fills with what is launched from then on."""
    launches: list[Launch] = []
    for name in names:
        monkeypatch.setattr(kernels, name, _Recorder(getattr(kernels, name), launches))
    return launches


def launch(op: str, way: str, **given: Any) -> Arguments:
    """What the Triton body of `op` is given: `given` and the results, allocated as the op does and, here, launched."""
    a, module = Arguments(given), importlib.import_module(f"dgnet_fast.ops.{op}")
    vars(a).update(module._results(a) if way == "forward" else module._gradients(a))
    getattr(module.triton, way)(a)
    return a


def distinct(launches: list[Launch]) -> list[Launch]:
    """One launch of each key, in order."""
    return list({launch.key: launch for launch in launches}.values())


def assert_lean(launches: list[Launch], capability: int, registers: int) -> list[Any]:
    """Compiles every distinct launch: no spills, no local memory, at most `registers` a thread."""
    compiled = []
    for launch in distinct(launches):
        kernel, usage = launch.compile(capability)
        assert is_lean(usage), (launch.key, usage)
        assert usage["REG"] <= registers, (launch.key, usage)
        compiled.append(kernel)
    return compiled
