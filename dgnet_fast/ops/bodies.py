"""Bodies of ops: what fills the results that an op has allocated, in C++, in CUDA C++ and in Triton.

A body checks nothing and allocates no result. Both of its functions take the op's `Arguments`: what the op's
`prepare` left of the inputs, and the results, each under its name. The extension takes addresses, all of them by
name, so that two that are swapped cannot run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgnet_fast.ops.layouts import is_channels_last
from dgnet_fast.ops.native import _C

#: Codes of csrc/common.h's Element.
ELEMENT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Arguments:
    """The inputs of one call of an op, named as the parameters of its reference; for a body, its results too."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.__dict__ = given

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def first(self) -> Tensor:
        """The first tensor: every op begins with one, or with a list of them."""
        value = next(iter(vars(self).values()))
        return value if isinstance(value, Tensor) else value[0]


Fill = Callable[[Arguments], None]


class Body:
    """Two functions that fill the results of the op and of its backward."""

    def __init__(self, forward: Fill, backward: Fill) -> None:
        self.forward = forward
        self.backward = backward


def address(tensor: Tensor | None) -> int:
    """Address of the first element; 0, a null pointer, for None, as PyTorch gives for an empty tensor."""
    return 0 if tensor is None else tensor.data_ptr()


def addresses(a: Arguments, *names: str) -> dict[str, int]:
    """The addresses of the tensors of those names, by name."""
    given = vars(a)
    return {name: address(given[name]) for name in names}


def layout(x: Tensor, padding: int) -> tuple[int, int, int, int, int, bool, int]:
    """The `Layout` of csrc/bindings.cpp for a dense x (B, C, H, W) and the padding of the result."""
    batch, channels, height, width = x.shape
    return batch, channels, height, width, padding, is_channels_last(x), ELEMENT_TYPES[x.dtype]


Call = Callable[[Arguments], dict[str, Any]]


def cpp_body(op: str, forward: Call, backward: Call) -> Body:
    """The C++ body of `op`, csrc/<op>.cpp, for CPU tensors.

    `forward` and `backward` give the named arguments of ``_C.<op>_forward`` and ``_C.<op>_backward``.
    """

    def filling(name: str, call: Call) -> Fill:
        launch = getattr(_C, name)
        return lambda a: launch(**call(a))

    return Body(filling(f"{op}_forward", forward), filling(f"{op}_backward", backward))


def cuda_body(op: str, forward: Call, backward: Call, workspace: tuple[str, ...]) -> Body:
    """The CUDA C++ body of `op`, csrc/<op>.cu, on the current stream of the tensors' device.

    It takes the arguments of the C++ body and a workspace, whose floats ``_C.<op>_workspace`` counts from the
    arguments that `workspace` names. PyTorch frees it in the stream's order, so it may go out of scope before the
    kernels have run.
    """

    def filling(name: str, call: Call) -> Fill:
        def fill(a: Arguments) -> None:
            arguments, device = call(a), a.first().device
            floats = getattr(_C, f"{op}_workspace")(**{key: arguments[key] for key in workspace})
            room = torch.empty(floats, dtype=torch.float32, device=device)
            stream = torch.cuda.current_stream(device).cuda_stream
            launch = getattr(_C, name)  # here, for an extension without CUDA has no such function
            launch(**arguments, workspace=address(room), device=device.index, stream=stream)

        return fill

    return Body(filling(f"{op}_forward_cuda", forward), filling(f"{op}_backward_cuda", backward))


def triton_body(op: str) -> Body:
    """The Triton body of `op`, kernels/<op>.py, for CUDA tensors, and for CPU tensors under Triton's interpreter."""

    def filling(way: str) -> Fill:
        def fill(a: Arguments) -> None:
            # The module imports triton, so it is imported only where it serves.
            kernels = importlib.import_module(f"dgnet_fast.kernels.{op}")
            with torch.cuda.device_of(a.first()):
                getattr(kernels, way)(a)

        return fill

    return Body(filling("forward"), filling("backward"))
