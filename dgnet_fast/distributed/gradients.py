"""Gradients summed over the processes of a run.

`DistributedDataParallel` wants each weight's gradient once in a backward pass of the whole model, and a step here has
many backward passes. So the sums are asked for: `GradientSums.start` when the gradients of an optimiser are whole, which
copies them into flat buckets and begins to sum these without waiting, and `GradientSums.wait` before the optimiser
moves. What is computed between the two hides the communication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dgnet_fast.distributed import processes

BUCKET = 32 * 2**20
"""Bytes of a bucket. The first is under way while the next is filled."""
ALIGNED = 8
"""Each gradient begins at a multiple of so many elements, for the fused optimisers' wide loads."""


class _Bucket(NamedTuple):
    """A bucket under way: what `processes.finish` waits for, the gradients, and their places in the bucket."""

    work: Any
    gradients: list[Tensor]
    places: list[Tensor]


class GradientSums:
    """Sums of the gradients of ``groups``, parameters by the name of their optimiser.

    The gradients of each process are taken to be its share of the whole, so that the sum is the gradient of the mean
    loss. All processes have gradients at the same parameters. Buckets are made once and stay where they are, so that a
    CUDA graph can hold their addresses. ``dtype`` bfloat16 halves what is sent, and the sums are then made in it;
    None sends what there is.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[nn.Parameter]], dtype: torch.dtype | None = None
    ) -> None:
        self._groups = {name: list(parameters) for name, parameters in groups.items()}
        self._dtype = dtype
        self._flat: dict[str, Tensor] = {}
        self._pending: dict[str, list[_Bucket]] = {}

    def start(self, name: str) -> None:
        """Begin to sum the gradients of an optimiser, which are whole. A second call before `wait` does nothing."""
        if processes.size() == 1 or name in self._pending:
            return
        self._pending[name] = begun = []
        learned = [p for p in self._groups[name] if p.grad is not None]
        flat, offset = self._buffer(name), 0
        for some in _cut(learned, flat.element_size()):
            places, first = [], offset
            for parameter in some:
                # each gradient's memory in the order of its parameter's, which need not be contiguous
                place = flat[offset : offset + parameter.numel()]
                places.append(place.as_strided(parameter.shape, parameter.stride(), place.storage_offset()))
                offset += _room(parameter)
            gradients = [p.grad for p in some if p.grad is not None]
            torch._foreach_copy_(places, gradients)
            begun.append(_Bucket(processes.sum_(flat[first:offset], wait=False), gradients, places))
            if flat.dtype == some[0].dtype:
                for parameter, place in zip(some, places, strict=True):
                    parameter.grad = place

    def wait(self, *names: str) -> None:
        """The sums are the parameters' gradients after this; those not begun are begun."""
        for name in names:
            self.start(name)
            for work, gradients, places in self._pending.pop(name, []):
                processes.finish(work)
                if gradients[0].dtype != places[0].dtype:
                    torch._foreach_copy_(gradients, places)

    def drain(self) -> None:
        """Wait for what is under way, whose results nobody takes (a step that was left)."""
        for buckets in self._pending.values():
            for bucket in buckets:
                processes.finish(bucket.work)
        self._pending = {}

    def forget(self) -> None:
        """Forget what a failed recording of a CUDA graph began: it ran on no device, so there is nothing to wait for."""
        self._pending = {}

    def bytes_of(self, name: str) -> int:
        """Bytes that a process contributes for an optimiser, all of its parameters having gradients."""
        dtype = self._dtype or self._groups[name][0].dtype
        return sum(p.numel() for p in self._groups[name]) * torch.empty((), dtype=dtype).element_size()

    def _buffer(self, name: str) -> Tensor:
        if name not in self._flat:
            first = self._groups[name][0]
            room = sum(map(_room, self._groups[name]))
            self._flat[name] = torch.zeros(room, dtype=self._dtype or first.dtype, device=first.device)
        return self._flat[name]


def _room(parameter: Tensor) -> int:
    return -(-parameter.numel() // ALIGNED) * ALIGNED


def _cut(parameters: list[nn.Parameter], element: int) -> list[list[nn.Parameter]]:
    """Consecutive parameters, about `BUCKET` bytes each."""
    cut: list[list[nn.Parameter]] = []
    filled = BUCKET
    for parameter in parameters:
        if filled >= BUCKET:
            cut.append([])
            filled = 0
        cut[-1].append(parameter)
        filled += _room(parameter) * element
    return cut
