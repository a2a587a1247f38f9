"""Which pictures make a training batch, and the batch itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.data.augment import flip_pad_crop, normalize, random_erasing_boxes

# Keys of the independent random streams under one seed.
_SHUFFLE, _POSITIVES, _AUGMENT, _ERASE = range(4)


class Batch(NamedTuple):
    """One training batch. Stream a is index 0 of the first dimension, stream b index 1.

    `x`, `xp` float32 (2, B, 3, H, W), normalised: the pictures and their positives. `labels` int64 (2, B).
    `erasing_boxes` int64 (4, B, 4) of (top, left, height, width) in pixels of the appearance encoder's input,
    for x_a, x_b, xp_a, xp_b, or None; height 0 is not erased.
    """

    x: Tensor
    xp: Tensor
    labels: Tensor
    erasing_boxes: Tensor | None


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


class TrainBatches:
    """Training batches of two streams and their positives, each a pure function of (seed, step).

    `images` uint8 (N, 3, H, W), `labels` int64 (N,). Each stream goes through its own shuffle of the pictures
    every epoch and drops the last incomplete batch. Pictures are flipped with probability 1/2, edge-padded by
    `pad` and cropped back at a random place, independently for x and xp. `images` stay on the device they are
    on (put them on the accelerator when they fit); batches come on `device`. `appearance_size` is the height
    and width of what `erasing_boxes` are for; default H, W.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        erasing_p: float = 0.0,
        appearance_size: tuple[int, int] | None = None,
        pad: int = 10,
        device: torch.device | str = "cpu",
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        self.labels = torch.as_tensor(labels).to("cpu", torch.int64).numpy()
        if self.labels.shape != (len(images),):
            raise ValueError(f"labels must be ({len(images)},), one per image, got {self.labels.shape}")
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"batch_size must be 1 to {len(images)}, the number of images, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        if not 0.0 <= erasing_p <= 1.0:
            raise ValueError(f"erasing_p must be 0 to 1, got {erasing_p}")
        if pad < 0:
            raise ValueError(f"pad must be 0 or more, got {pad}")
        self.images, self.batch_size, self.seed, self.pad = images.contiguous(), batch_size, seed, pad
        self.erasing_p, self.device = erasing_p, torch.device(device)
        self.appearance_size = tuple(images.shape[2:]) if appearance_size is None else tuple(appearance_size)
        self.positives = PositiveSampler(self.labels)
        self._shuffles: dict[tuple[int, int], np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass of a stream over the pictures."""
        return len(self.images) // self.batch_size

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, *key))))

    def _shuffle(self, stream: int, epoch: int) -> np.ndarray:
        key = stream, epoch
        if key not in self._shuffles:
            if len(self._shuffles) >= 4:  # this epoch and the one before or after it, for both streams
                self._shuffles.clear()
            self._shuffles[key] = self._rng(_SHUFFLE, stream, epoch).permutation(len(self.images))
        return self._shuffles[key]

    def indices(self, step: int) -> np.ndarray:
        """The pictures of `step`, int64 (4, B): streams a and b, then their positives."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}")
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.batch_size
        pictures = np.stack([self._shuffle(s, epoch)[first : first + self.batch_size] for s in range(2)])
        return np.concatenate([pictures, self.positives.draw(pictures, self._rng(_POSITIVES, step))])

    def batch(self, step: int) -> Batch:
        """The batch of `step` (from 0). The same whatever was asked before, so a run can resume anywhere."""
        indices = self.indices(step)
        count = indices.size
        rng = self._rng(_AUGMENT, step)
        draws = [
            indices.reshape(-1),
            rng.integers(0, 2, count),
            rng.integers(0, 2 * self.pad + 1, count),
            rng.integers(0, 2 * self.pad + 1, count),
        ]
        chosen, flip, top, left = _move(torch.from_numpy(np.stack(draws)), self.images.device)
        pictures = flip_pad_crop(self.images, chosen, flip.bool(), top, left, self.pad)
        pictures = normalize(_move(pictures, self.device))
        streams = pictures.view(2, 2, self.batch_size, *pictures.shape[1:])
        boxes = None
        if self.erasing_p > 0:
            drawn = random_erasing_boxes(
                self._rng(_ERASE, step), count, *self.appearance_size, self.erasing_p
            )
            boxes = _move(torch.from_numpy(drawn), self.device).view(4, self.batch_size, 4)
        labels = _move(torch.from_numpy(self.labels[indices[:2]]), self.device)
        return Batch(streams[0], streams[1], labels, boxes)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # so that the copy does not make the host wait for the accelerator
    return tensor.to(device, non_blocking=True)
