"""Streams of a GPU on which parts of a step run side by side.

Most kernels of a step are too small for a whole GPU: at 256×128 and batch 8 a step in bf16 has about 4 000 of them, 9 µs
each. D's update and E_a's lessons need nothing from each other, nor from G's reconstructions, so that in a recorded step
their kernels can fill the GPU together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class Lanes:
    """Further streams of ``device``, by name.

    What is queued in a lane begins when all that was queued on the current stream before is done, and ends before what
    comes after `join`. PyTorch gives memory that is let go on a stream to the same stream again. So what the
    current stream made and a lane reads must be kept until `join`; what a lane made is free at any time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._open: list[torch.cuda.Stream] = []

    @contextlib.contextmanager
    def lane(self, name: str) -> Iterator[None]:
        """Within, work is queued in this lane, after what it has already."""
        if name not in self._streams:
            self._streams[name] = torch.cuda.Stream(self.device)
        stream = self._streams[name]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        if stream not in self._open:
            self._open.append(stream)
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """What is queued on the current stream from now on begins when all lanes are done."""
        here = torch.cuda.current_stream(self.device)
        for stream in self._open:
            here.wait_stream(stream)
        self._open = []
