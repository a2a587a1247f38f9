"""Fake CUDA tensors, with which a step runs without a GPU: shapes, dtypes, memory orders and devices, and no values.

Operators are the ones that a GPU would be given, ours included. PyTorch's CPU builds take them as well, with two of its
answers replaced: that autocast needs a device, and in which memory order a convolution's result comes. Gradients need a CUDA
build of PyTorch, for their nodes ask for the device's streams; so do copies into a tensor that is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dgnet_fast.models.typed import Network
from dgnet_fast.training.optim import Precision

CUDA = torch.device("cuda", 0)


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Within, tensors on `CUDA` are fake; where backward passes are possible, they run in this thread."""
    with (
        mock.patch("torch.cuda._lazy_init"),
        mock.patch.object(torch._C, "_conv_determine_backend_memory_format", _as_cudnn),
        torch.autograd.set_multithreading_enabled(False),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        yield mode


def on_fake_cuda(network: Network) -> Network:
    """The network itself with its weights and buffers on `CUDA`, in channels_last; ``.to`` cannot move fake ones."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(moved(weight), requires_grad=weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, moved(buffer))
    return network


def moved(x: Tensor) -> Tensor:
    """A fake tensor on `CUDA` like x, in channels_last; ``x.to`` would ask for a device."""
    order = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=CUDA, memory_format=order)


def _as_cudnn(x: Tensor, weight: Tensor, _backend: Any) -> torch.memory_format:
    """cuDNN answers in channels_last where one of its inputs comes in it (aten/src/ATen/native/ConvUtils.h)."""
    either = any(
        t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight)
    )
    return torch.channels_last if either else torch.contiguous_format


class FakePrecision(Precision):
    """`Precision` whose autocast does not ask whether there is a device; fp16's loss scaling is left out."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__(None, CUDA)
        self.dtype = dtype

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", self.dtype is not None)
        torch.set_autocast_dtype("cuda", self.dtype or before[1])
        torch.autocast_increment_nesting()
        try:
            yield
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
