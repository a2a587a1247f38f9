"""Pictures to the device: all of them where they fit, else those of the next step while this one runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from dgnet_fast.data.cache import MappedPictures

logger = logging.getLogger(__name__)

PLACES = ("auto", "device", "host")
SHARE = 4
"""Pictures stay on the device if they take at most one part in so many of its free memory: a training step of
batch 8 takes up to 6 GB of the rest, and Market-1501 at 256x128 (1.27 GB) asks for 5.1 GB free."""
PIECE = 2**28
"""Bytes copied to the device at a time, so that a mapped file never is in this process's resident set whole."""


def place(
    pictures: Tensor | MappedPictures,
    device: torch.device,
    where: str = "auto",
    *,
    free: Callable[[torch.device], int] | None = None,
) -> Tensor | MappedPictures:
    """uint8 pictures (N, 3, H, W) where training should find them.

    `where`: 'device' copies them to `device`, 'host' leaves them, 'auto' copies them if they take at most a
    quarter of the device's free memory (`free(device)` bytes). Nothing is copied for a device that is the CPU.
    Raises ValueError for another `where`, and if 'device' asks for more than is free.
    """
    if where not in PLACES:
        raise ValueError(f"pictures_on is {where!r}; allowed: {', '.join(PLACES)}")
    source = pictures.tensor if isinstance(pictures, MappedPictures) else pictures
    if device.type == "cpu" or where == "host" or source.device == device:
        return pictures
    left = (free or _free)(device)
    fits = source.nbytes * SHARE <= left
    held = None
    if fits or where == "device":
        with contextlib.suppress(torch.OutOfMemoryError):  # the largest free block may be smaller
            held = torch.empty(source.shape, dtype=source.dtype, device=device)
    sizes = f"the pictures take {source.nbytes / 1e9:.2f} GB, {left / 1e9:.2f} GB are free on {device}"
    if held is None and where == "device":
        raise ValueError(f"pictures_on is 'device': {sizes}; allowed here: auto, host")
    if held is None:
        logger.info(f"{sizes}: they stay in host memory and are streamed")
        return pictures
    count = max(1, PIECE // max(1, source[:1].nbytes))
    for first in range(0, len(source), count):
        held[first : first + count].copy_(source[first : first + count])
        if isinstance(pictures, MappedPictures):
            pictures.release()
    return held


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


class _Slot:
    """Pictures and plan of one step: filled on the host, copied to the device.

    On a CUDA device the host's tensors are pinned; `copied` is recorded after the copy, on the side stream, and
    `read` after the last kernel that reads the device's tensors, on the stream that takes the step.
    """

    def __init__(self) -> None:
        self.pictures: Tensor | None = None
        self.packed: Tensor | None = None
        self.copied: Any = None
        self.read: Any = None
        self.on_device: tuple[Tensor, Tensor] | None = None


class Stream:
    """Pictures of a step on `device`, gathered and copied one step ahead by a thread.

    `plan(step)` gives the step's plan, int64 (L,) on the host, and `gather(plan, out)` its pictures, uint8
    (n, 3, H, W), into `out` where there is one; both are called from the thread, of one step after the other,
    and must give the same for the same step whoever calls. Two slots take turns, so two pinned buffers and two on
    the device are all the memory there is.

    What keeps the slots whole: the thread writes a pinned buffer only when the copy out of it has ended
    (`copied`, waited for on the host), a copy writes a device buffer only when the kernels of two steps before
    have read it (`read`, waited for by the side stream), and those kernels wait for the copy (`copied`, waited
    for by their stream).
    """

    def __init__(
        self,
        plan: Callable[[int], Tensor],
        gather: Callable[[Tensor, Tensor | None], Tensor],
        device: torch.device,
        cuda: Any = torch.cuda,  # a test brings streams of its own
    ) -> None:
        self._plan, self._gather, self.device = plan, gather, device
        self._cuda: Any = cuda if device.type == "cuda" or cuda is not torch.cuda else None
        self._side: Any = self._cuda.Stream(device) if self._cuda else None
        self._slots = [_Slot(), _Slot()]
        self._next = 0
        self._ahead: tuple[int, Future[_Slot]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    @contextlib.contextmanager
    def take(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The pictures and the plan of `step` on the device, good until the block ends: copy what must last.

        Starts on step + 1. Any step may be asked for; one that was not foreseen is made now. Errors of `plan` and
        `gather` are raised here.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            slot = ahead[1].result()
        else:
            if ahead is not None:
                ahead[1].exception()  # ends first: its slot is in use; what failed there was not asked for
            slot = self._start(step).result()
        assert slot.on_device is not None
        current: Any = None
        if self._cuda:
            current = self._cuda.current_stream(self.device)
            current.wait_event(slot.copied)
            for one in slot.on_device:
                if one.is_cuda:  # allocated on the side stream: freed memory must wait for this one too
                    one.record_stream(current)
        self._ahead = step + 1, self._start(step + 1)
        try:
            yield slot.on_device
        finally:
            if self._cuda:
                slot.read = self._cuda.Event()
                slot.read.record(current)

    def _start(self, step: int) -> Future[_Slot]:
        slot = self._slots[self._next]
        self._next ^= 1
        return self._thread.submit(self._fill, slot, step)

    def _fill(self, slot: _Slot, step: int) -> _Slot:
        packed = self._plan(step)
        if self._cuda is None:
            slot.pictures = pictures = self._gather(packed, slot.pictures)
            slot.on_device = pictures, packed
            return slot
        if slot.pictures is None or slot.packed is None:
            pictures, plan = self._pinned(self._gather(packed, None)), self._pinned(packed)
            slot.pictures, slot.packed = pictures, plan
        else:
            if slot.copied is not None:
                slot.copied.synchronize()
            pictures, plan = slot.pictures, slot.packed
            self._gather(packed, pictures)
            plan.copy_(packed)
        with self._cuda.stream(self._side):
            if slot.on_device is None:
                slot.on_device = (
                    torch.empty_like(pictures, device=self.device),
                    torch.empty_like(plan, device=self.device),
                )
            elif slot.read is not None:
                self._side.wait_event(slot.read)
            for target, source in zip(slot.on_device, (pictures, plan), strict=True):
                self._copy(target, source)
            slot.copied = self._cuda.Event()
            slot.copied.record(self._side)
        return slot

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory()

    def _copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)
