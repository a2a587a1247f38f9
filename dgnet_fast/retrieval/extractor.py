"""Retrieval features of any pictures: files, folders, arrays, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgnet_fast.checkpoints.fingerprint import digest
from dgnet_fast.checkpoints.loading import load_encoder
from dgnet_fast.config import Config
from dgnet_fast.config.device import resolve_device
from dgnet_fast.data import Split, cache_folder, cached_pictures, decode_split, normalize
from dgnet_fast.data.chunks import CHUNK, Slice, batches_of, decoded_chunks
from dgnet_fast.data.files import picture_files, unlabelled
from dgnet_fast.data.inputs import images_of
from dgnet_fast.data.reading import resized
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.sharing import digest_of, shared_out
from dgnet_fast.metrics import symmetric_features
from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.models.batch_norm import fold_batch_norms
from dgnet_fast.report.progress import Progress
from dgnet_fast.retrieval.features import extract_features


class Extractor:
    """The appearance encoder of a checkpoint as a function from pictures to features.

    ``Extractor("runs/a")(pictures)`` gives float32 (N, F) on the CPU: the features that
    `dgnet_fast.evaluate` scores. In style AB these are 1024 numbers, and each half has unit length. Give one
    picture or a list of pictures, as

    - paths of files, or of folders (all pictures below them, sorted: `picture_files`);
    - PIL pictures;
    - NumPy arrays, uint8 RGB, (H, W, 3) or (N, H, W, 3);
    - tensors, uint8 or floating point in 0..1, (3, H, W) or (N, 3, H, W), on any device.

    All pictures are resized bicubically to the size of the network, so a picture has the same feature in whichever
    form it is given. `to_unit` turns features into vectors whose dot product is the score.

    Args:
        checkpoint: anything that `load_encoder` reads: a run folder, one of its checkpoints, public files, a teacher.
        device: auto, cpu, cuda or cuda:N.
        batch: pictures in one pass; each one is computed twice, with its mirror image.
        config_file, allow_extra: as in `load_encoder`, for public checkpoints.
        second_half_weight: weight of the fine-grained half in `to_unit`; None means that half alone.

    Raises:
        ValueError: the checkpoint cannot be read, or a picture cannot be read, is empty or of another kind, or has a
            feature that is not finite.

    Example:
        >>> from dgnet_fast import Extractor
        >>> extractor = Extractor("runs/a", device="cpu")
        >>> features = extractor(["anna.png", "ben.png"])
        >>> features.shape
        torch.Size([2, 32])
        >>> vectors = extractor.to_unit(features)
        >>> similarity = float(vectors[0] @ vectors[1])  # 1 for the same picture
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        device: str = "auto",
        batch: int = 64,
        config_file: str | Path | None = None,
        allow_extra: bool = False,
        second_half_weight: float | None = 0.5,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}; it must be at least 1")
        where = resolve_device(device)
        encoder, config, known = load_encoder(checkpoint, config_file=config_file, allow_extra=allow_extra)
        self._hold(encoder.to(where).requires_grad_(False), config, batch, second_half_weight)
        self.source = str(known["source"])

    @classmethod
    def of(
        cls,
        encoder: AppearanceEncoder,
        config: Config,
        *,
        batch: int = 64,
        second_half_weight: float | None = 0.5,
    ) -> Extractor:
        """The extractor of a network in memory, where it is and as it is now, at the size that ``config`` gives."""
        made = cls.__new__(cls)
        made._hold(encoder, config, batch, second_half_weight)
        return made

    def _hold(
        self, encoder: AppearanceEncoder, config: Config, batch: int, second_half_weight: float | None
    ) -> None:
        self.encoder, self.device = encoder, next(encoder.parameters()).device
        self._folded = fold_batch_norms(encoder)
        self.height, self.width = config.picture_size
        self.upsample, self.batch, self.workers = config.ID_upsample, batch, config.num_workers or 1
        self.cache = cache_folder(config.data_cache)
        self.second_half_weight = second_half_weight if encoder.style == "AB" else 1.0
        self.source = ""
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights and the picture size: equal for models whose features can be
        compared.
        """
        if not self._fingerprint:
            about = f"{self.encoder.style} {self.height} {self.width} {self.upsample}"
            self._fingerprint = digest(self.encoder.state_dict(), about)
        return self._fingerprint

    def __call__(self, pictures: Any, *, progress: Progress | None = None) -> Tensor:
        """Features float32 (N, F) on the CPU, in the order of the pictures."""
        if isinstance(pictures, (str, Path)):
            pictures = [pictures]
        if (
            isinstance(pictures, (list, tuple))
            and pictures
            and all(isinstance(p, (str, Path)) for p in pictures)
        ):
            return self.files(picture_files(pictures), progress=progress)
        rows: list[Tensor] = []
        waiting: list[Tensor] = []
        for picture in self._resized(pictures):
            waiting.append(picture)
            if len(waiting) == self.batch:
                rows.append(self._features(torch.stack(waiting)))
                waiting = []
        if waiting:
            rows.append(self._features(torch.stack(waiting)))
        if not rows:
            raise ValueError("no pictures to extract features from")
        return torch.cat(rows)

    def files(self, paths: Iterable[str | Path], *, progress: Progress | None = None) -> Tensor:
        """Features of picture files, float32 (N, F) on the CPU."""
        split = unlabelled(paths)
        if not len(split):
            raise ValueError("no pictures to extract features from")
        return self.split(split, cached=False, progress=progress)

    def split(
        self, split: Split, *, cached: bool = True, together: bool = False, progress: Progress | None = None
    ) -> Tensor:
        """Features float32 (N, F) on the CPU of all pictures of a split, decoded a bounded number at a time; with
        ``cached`` from the cache of decoded pictures that the options name, which is made at once if need be.

        ``together``: all processes of a run call this; each computes a share, and all get all rows, which are bit by bit
        those of one process.

        Raises:
            ValueError: a picture cannot be read, or with ``together`` a process has another network or other pictures.
        """
        rows, cache = [], self.cache if cached else None
        if together and processes.size() > 1:
            self.check_together(split)
            with processes.first_on_node("decoded pictures"):
                kept = cached_pictures(split, self.height, self.width, cache, workers=self.workers)

            def share(ends: tuple[int, int]) -> Tensor:
                return self.rows(split, *ends) if kept is None else self._features(kept.tensor[slice(*ends)])

            batches = batches_of(len(split), self.batch)
            for (_, last), features in zip(batches, shared_out(share, batches), strict=True):
                rows.append(features)
                if progress is not None:
                    progress(last, len(split))
            return torch.cat(rows)
        chunks = decoded_chunks(split, self.height, self.width, workers=self.workers, cache=cache)
        for first, pictures in chunks:
            rows += [self._features(part) for part in pictures.split(self.batch)]
            if progress is not None:
                progress(min(first + CHUNK, len(split)), len(split))
        return torch.cat(rows)

    def check_together(self, split: Split) -> None:
        """Raise ValueError, on all processes of a run, if one has another network, other pictures or another batch size."""
        processes.check_same(
            {
                "the network": self.fingerprint,
                "the number of pictures": len(split),
                "the list of pictures": digest_of(split.names),
                "the batch size": self.batch,
            }
        )

    def rows(self, split: Split, first: int, last: int) -> Tensor:
        """Features float32 (last - first, F) on the CPU of some pictures of a split, decoded all at once."""
        pictures = decode_split(Slice(split, first, last), self.height, self.width, workers=self.workers)
        return torch.cat([self._features(part) for part in pictures.split(self.batch)])

    def to_unit(self, features: Tensor) -> Tensor:
        """Vectors (N, F) of unit length whose dot product is the score (0..1 for the same picture: 1), as
        `symmetric_features` makes them.
        """
        return symmetric_features(features, self.second_half_weight)

    def _features(self, pictures: Tensor) -> Tensor:
        x = normalize(pictures.to(self.device))
        features = extract_features(self._folded, x, upsample=self.upsample).cpu()
        if not torch.isfinite(features).all():
            raise ValueError(
                f"the network{' of ' * bool(self.source)}{self.source} gives features that are not finite; take an earlier checkpoint"
            )
        return features

    def _resized(self, pictures: Any) -> Iterator[Tensor]:
        """Each picture as uint8 (3, height, width)."""
        for index, image in enumerate(images_of(pictures)):
            if not image.width * image.height:
                raise ValueError(f"picture {index} is empty: {image.height}x{image.width} pixels")
            yield torch.from_numpy(resized(image, self.height, self.width).copy()).permute(2, 0, 1)
