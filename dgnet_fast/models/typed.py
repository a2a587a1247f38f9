"""What PyTorch's own annotations leave out of its modules, for a type checker; nothing is added when the program runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)

if TYPE_CHECKING:
    Layer = TypeVar("Layer", bound=nn.Module, covariant=True)

    class ModuleList(nn.ModuleList, Generic[Layer]):
        """``nn.ModuleList`` that knows of what kind its modules are."""

        def __init__(self, modules: Iterable[Layer]) -> None: ...
        def __getitem__(self, index: int) -> Layer: ...
        def __iter__(self) -> Iterator[Layer]: ...
else:
    ModuleList = nn.ModuleList


def in_channels_last(network: Network, device: torch.device | None = None) -> Network:
    """The network itself, moved to the device (None: left where it is), its convolutions' weights in channels_last."""
    return network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in the stub
