"""The device that an option names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dgnet_fast.config.fields import ConfigError
from dgnet_fast.distributed.launch import launched


def resolve_device(name: str) -> torch.device:
    """The device that ``--device`` names; auto is CUDA if there is a CUDA device. Where a launcher started several
    processes, auto and cuda mean the device of this process's number on its machine. Raises ConfigError for any other
    name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}; allowed: auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; allowed: auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, and this PyTorch sees no CUDA device; allowed here: cpu")
    place = launched()
    if place and device.type == "cuda":
        if device.index not in (None, place.local_rank):
            raise ConfigError(
                f"device is {name!r}, and there are {place.size} processes; allowed: auto, cpu, cuda"
            )
        device = torch.device("cuda", place.local_rank)
    return device


@contextlib.contextmanager
def convolutions_tried(device: torch.device) -> Iterator[None]:
    """Within, cuDNN tries its algorithms on each convolution that it meets for the first time, and keeps the fastest;
    afterwards as the caller had it. For work whose shapes repeat. On another device than CUDA nothing changes.
    """
    before = torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
