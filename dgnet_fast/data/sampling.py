"""Which pictures make a training batch, and the batch itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.data.augment import assemble, random_erasing_boxes
from dgnet_fast.data.cache import MappedPictures
from dgnet_fast.data.stream import Stream

# Keys of the independent random streams under one seed.
_SHUFFLE, _POSITIVES, _AUGMENT, _ERASE = range(4)


class Batch(NamedTuple):
    """One training batch. Stream a is index 0 of the first dimension, stream b index 1.

    `x`, `xp` float32 (2, B, 3, H, W), normalised: the pictures and their positives. `labels` int64 (2, B).
    `erasing_boxes` int64 (4, B, 4) of (top, left, height, width) in pixels of the appearance encoder's input,
    for x_a, x_b, xp_a, xp_b, or None; height 0 is not erased.

    `more` float32 (2, M, 3, H, W) with `more_labels` int64 (2, M): further pictures for E_a alone, or None.
    """

    x: Tensor
    xp: Tensor
    labels: Tensor
    erasing_boxes: Tensor | None
    more: Tensor | None = None
    more_labels: Tensor | None = None


class PositiveSampler:
    """Another picture of the same identity, uniformly, in O(1) a sample.

    The pictures are sorted by label once, so an identity is a slice: picture i lies at `rank[i]` of a slice
    of `size[i]` that starts at `start[i]`. A draw r among the size - 1 others is shifted by one if it is not
    before i.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.order = np.argsort(labels, kind="stable")
        _, first, inverse, counts = np.unique(
            labels[self.order], return_index=True, return_inverse=True, return_counts=True
        )
        self.start, self.size, self.rank = (np.empty(len(labels), dtype=np.int64) for _ in range(3))
        self.start[self.order] = first[inverse]
        self.size[self.order] = counts[inverse]
        self.rank[self.order] = np.arange(len(labels)) - first[inverse]

    def draw(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A positive for each of `indices`, same shape; the picture itself where it is the only one of its
        identity.
        """
        others = self.size[indices] - 1
        drawn = (rng.random(indices.shape) * others).astype(np.int64)
        drawn += (drawn >= self.rank[indices]) & (others > 0)
        return self.order[self.start[indices] + drawn]


class Plan(NamedTuple):
    """All that the host says of a batch, as views of one int64 vector `packed`, so that one copy moves it.

    `indices` (4 B,): the pictures of x_a, x_b, xp_a, xp_b; `flip` (0 or 1), `top`, `left` (4 B,): their
    augmentation; `labels` (2, B); `boxes` (4, B, 4) or None, as in `Batch`.
    """

    packed: Tensor
    indices: Tensor
    flip: Tensor
    top: Tensor
    left: Tensor
    labels: Tensor
    boxes: Tensor | None

    @classmethod
    def of(cls, packed: Tensor, batch_size: int) -> Plan:
        indices, flip, top, left = packed[: 16 * batch_size].view(4, -1)
        rest = packed[16 * batch_size :]
        labels, boxes = rest[: 2 * batch_size].view(2, -1), rest[2 * batch_size :]
        boxes = boxes.view(4, -1, 4) if len(boxes) else None
        return cls(packed, indices, flip, top, left, labels, boxes)


class TrainBatches:
    """Training batches of two streams and their positives, each a pure function of (seed, step).

    `images` uint8 (N, 3, H, W), `labels` int64 (N,). Each stream goes through its own shuffle of the pictures
    every epoch and drops the last incomplete batch. Pictures are flipped with probability 1/2, edge-padded by
    `pad` and cropped back at a random place, independently for x and xp. `appearance_size` is the height and
    width of what `erasing_boxes` are for; default H, W.

    `images` stay where they are, on the accelerator (see `stream.place`) or in host memory, mapped from a file
    or not; batches come on `device`. From the host to a CUDA device the pictures of the next step are gathered
    and copied by a thread while this step runs (`stream.Stream`; `streamed` says so or not explicitly). On a CPU the system
    reads those of a mapped file meanwhile, if memory does not hold them any more (`MappedPictures.expect`).

    `part` (k, n): a batch is the k-th of the n equal parts of the batch of n * `batch_size` pictures that `part` (0, 1)
    would give, augmentation and all: the share of one process of n.
    """

    def __init__(
        self,
        images: Tensor | MappedPictures,
        labels: Tensor | np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        erasing_p: float = 0.0,
        appearance_size: tuple[int, int] | None = None,
        pad: int = 10,
        device: torch.device | str = "cpu",
        streamed: bool | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._mapped = images if isinstance(images, MappedPictures) else None
        images = images.tensor if isinstance(images, MappedPictures) else images
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        self.labels = torch.as_tensor(labels).to("cpu", torch.int64).numpy()
        if self.labels.shape != (len(images),):
            raise ValueError(f"labels must be ({len(images)},), one per image, got {self.labels.shape}")
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"batch_size must be 1 to {len(images)}, the number of images, got {batch_size}")
        number, parts = part
        if not 0 <= number < parts:
            raise ValueError(f"part is {part}; allowed: (k, n) with k from 0 to n - 1")
        if batch_size * parts > len(images):
            raise ValueError(
                f"{parts} processes with a batch size of {batch_size} need {batch_size * parts} pictures for a step, and "
                f"there are {len(images)}; lower the batch size or start fewer processes"
            )
        self._whole = batch_size * parts
        self._mine = slice(number * batch_size, (number + 1) * batch_size)
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        if not 0.0 <= erasing_p <= 1.0:
            raise ValueError(f"erasing_p must be 0 to 1, got {erasing_p}")
        if pad < 0:
            raise ValueError(f"pad must be 0 or more, got {pad}")
        self.images, self.batch_size, self.seed, self.pad = images.contiguous(), batch_size, seed, pad
        self.erasing_p, self.device = erasing_p, torch.device(device)
        height, width = images.shape[2:] if appearance_size is None else appearance_size
        self.appearance_size = height, width
        self.positives = PositiveSampler(self.labels)
        self._shuffles: dict[tuple[int, int], np.ndarray] = {}
        if streamed is None:
            streamed = self.device.type == "cuda" and self.images.device.type == "cpu"
        self._stream = Stream(self._plan, self._gather, self.device) if streamed else None
        self._places: Tensor | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches, of all parts together, in one pass of a stream over the pictures."""
        return len(self.images) // self._whole

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, *key))))

    def _shuffle(self, stream: int, epoch: int) -> np.ndarray:
        key = stream, epoch
        shuffle = self._shuffles.get(key)  # two threads may be here at once
        if shuffle is None:
            shuffle = self._rng(_SHUFFLE, stream, epoch).permutation(len(self.images))
            if len(self._shuffles) >= 4:  # this epoch and the one before or after it, for both streams
                self._shuffles.clear()
            self._shuffles[key] = shuffle
        return shuffle

    def indices(self, step: int) -> np.ndarray:
        """The pictures of `step`, int64 (4, B): streams a and b, then their positives."""
        return self._whole_indices(step)[:, self._mine]

    def _whole_indices(self, step: int) -> np.ndarray:
        """Those of all parts, int64 (4, n * B)."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}")
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self._whole
        pictures = np.stack([self._shuffle(s, epoch)[first : first + self._whole] for s in range(2)])
        return np.concatenate([pictures, self.positives.draw(pictures, self._rng(_POSITIVES, step))])

    def _plan(self, step: int) -> Tensor:
        """`Plan.packed` of `step`, on the host."""
        indices = self._whole_indices(step)
        count = indices.size
        rng = self._rng(_AUGMENT, step)
        parts = [
            indices,
            rng.integers(0, 2, count).reshape(4, -1),
            rng.integers(0, 2 * self.pad + 1, count).reshape(4, -1),
            rng.integers(0, 2 * self.pad + 1, count).reshape(4, -1),
            self.labels[indices[:2]],
        ]
        if self.erasing_p > 0:
            boxes = random_erasing_boxes(
                self._rng(_ERASE, step), count, *self.appearance_size, self.erasing_p
            )
            parts.append(boxes.reshape(4, -1, 4))
        return torch.from_numpy(np.concatenate([one[:, self._mine].reshape(-1) for one in parts]))

    def _gather(self, packed: Tensor, out: Tensor | None) -> Tensor:
        """The pictures of a plan on the host, uint8 (4 B, 3, H, W), as they are; into `out` if it is there."""
        chosen = torch.index_select(self.images, 0, Plan.of(packed, self.batch_size).indices, out=out)
        self._release()
        return chosen

    def _release(self) -> None:
        if self._mapped is not None:
            self._mapped.release()

    def batch(self, step: int) -> Batch:
        """The batch of `step` (from 0). The same whatever was asked before, so a run can resume anywhere."""
        if self._stream is not None:
            with self._stream.take(step) as (pictures, packed):
                packed = packed.clone()  # the stream's own buffers are filled again for the step after next
                if self._places is None:
                    self._places = torch.arange(len(pictures), device=packed.device)
                plan = Plan.of(packed, self.batch_size)._replace(indices=self._places)
                return self._assemble(pictures, plan)
        packed = _move(self._plan(step), self.images.device)
        made = self._assemble(self.images, Plan.of(packed, self.batch_size))
        self._release()
        if self._mapped is not None:
            self._mapped.expect(self.indices(step + 1))
        x, xp, labels = (_move(part, self.device) for part in (made.x, made.xp, made.labels))
        boxes = made.erasing_boxes
        return Batch(x, xp, labels, None if boxes is None else _move(boxes, self.device))

    def _assemble(self, images: Tensor, plan: Plan) -> Batch:
        pictures = assemble(images, plan.indices, plan.flip, plan.top, plan.left, self.pad)
        streams = pictures.view(2, 2, self.batch_size, *pictures.shape[1:])
        return Batch(streams[0], streams[1], plan.labels, plan.boxes)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # so that the copy does not make the host wait for the accelerator
    return tensor.to(device, non_blocking=True)


class WithMore:
    """The batches of ``batches``, each with the pictures of ``more``'s batch of the same step as `Batch.more`."""

    def __init__(self, batches: TrainBatches, more: TrainBatches) -> None:
        self._batches, self._more = batches, more

    def batch(self, step: int) -> Batch:
        """The batch of a step, as `TrainBatches.batch`."""
        more = self._more.batch(step)
        return self._batches.batch(step)._replace(more=more.x, more_labels=more.labels)
