"""Pictures named by their source: a file, a folder, or a split of a data set."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from dgnet_fast.config import Config
from dgnet_fast.config.places import is_data_set
from dgnet_fast.data import ChosenPictures, Split, decode_split
from dgnet_fast.data.base import UNKNOWN_CAMERA
from dgnet_fast.data.files import FileSplit, picture_files
from dgnet_fast.data.walking import normal_name

SPLITS = ("train", "query", "gallery", "multi_query")
NOBODY = -1
"""The person of a picture whose identity is unknown; it is equal to no other person."""


@dataclass(frozen=True)
class Pictures:
    """Pictures to generate from. ``label`` says where they come from, ``people`` int64 (N,) who is on each
    (`NOBODY` where unknown).
    """

    label: str
    split: Split
    people: np.ndarray

    def __len__(self) -> int:
        return len(self.split)

    def choose(self, indices: Sequence[int] | np.ndarray) -> Pictures:
        """Only these pictures, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Pictures(self.label, ChosenPictures.of(self.split, chosen), self.people[chosen])

    def decode(self, height: int, width: int, workers: int | None = None) -> Tensor:
        """All of them, uint8 (N, 3, height, width)."""
        return decode_split(self.split, height, width, workers=workers)


def open_pictures(source: str, config: Config) -> Pictures:
    """The pictures that ``source`` names: a file, a folder, or ``DATASET:SPLIT`` such as ``market1501:gallery``.

    A split may be narrowed to one camera: ``market1501:train:camera=3``. A folder is read with all its subfolders, in
    the order of the paths; if it has subfolders, they are the people. The junk of a data set is left out; its folder and
    options are those of ``config`` (``data_root``, …). Raises ValueError for a source that is neither, or empty.
    """
    source = os.path.expanduser(source)
    name, _, part = source.partition(":")
    if is_data_set(source):
        return _of_dataset(source, name, part, config)
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"no such picture, folder or data set: {source!r}; a data set is named with its split, as in market1501:gallery"
        )
    files, root = picture_files([path]), path if path.is_dir() else path.parent
    names = [file.relative_to(root).as_posix() for file in files]
    parents = [normal_name(str(file.parent)) for file in files]
    numbers = {name: number for number, name in enumerate(sorted(set(parents)), start=1)}
    people = [
        numbers[name] if file.parent != root else NOBODY for name, file in zip(parents, files, strict=True)
    ]
    unknown = np.full(len(files), UNKNOWN_CAMERA, dtype=np.int64)
    people = np.array(people, dtype=np.int64)
    return Pictures(source, FileSplit(people, unknown, names, root), people)


def _of_dataset(source: str, name: str, part: str, config: Config) -> Pictures:
    from dgnet_fast.data.datasets import dataset_of

    part, _, only = part.partition(":")
    chosen = re.fullmatch(r"camera=(\d+)", only)
    if only and not chosen:
        raise ValueError(f"{source!r} ends in {only!r}; allowed: camera=N")
    if part not in SPLITS:
        raise ValueError(f"{source!r} names no split; allowed: {', '.join(f'{name}:{s}' for s in SPLITS)}")
    dataset = dataset_of(config.replace(data=name))
    split = dataset.splits.get(part)
    if split is None:
        raise ValueError(f"the data set {name!r} has no split {part!r} here")
    everybody = Pictures(source, split, np.where(split.ids > 0, split.ids, NOBODY))
    kept = split.ids >= 0
    if chosen:
        kept &= split.cameras == int(chosen[1])
        if not kept.any():
            there = ", ".join(map(str, np.unique(split.cameras)))
            raise ValueError(f"{source!r} has no picture of camera {chosen[1]}; there are cameras {there}")
    return everybody.choose(np.flatnonzero(kept))
