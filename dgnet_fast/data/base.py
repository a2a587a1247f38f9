"""The form of every re-identification data set: three or four `Split`s of labelled pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dgnet_fast.data.reading import resized

JUNK, DISTRACTOR, UNKNOWN_CAMERA = -1, 0, -1


@dataclass(frozen=True)
class Split(ABC):
    """Pictures with their labels.

    `ids` int64 (N,): person ids as in the names; -1 is junk and 0 a distractor, as in Market-1501. `cameras`
    int64 (N,): 1-based as in the names, -1 where unknown. `names`: relative path or description of each
    picture.
    """

    ids: np.ndarray
    cameras: np.ndarray
    names: list[str]

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.cameras) == len(self.names)
        assert self.ids.dtype == self.cameras.dtype == np.int64

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def load(self, index: int) -> np.ndarray:
        """The picture as stored: uint8 (H, W, 3) RGB."""

    def load_resized(self, index: int, height: int, width: int) -> np.ndarray:
        """The picture resized bicubically, as DG-Net does: uint8 (height, width, 3) RGB."""
        return resized(Image.fromarray(self.load(index)), height, width)


@dataclass(frozen=True)
class ChosenPictures(Split):
    """Pictures of another split, by index."""

    source: Split
    indices: np.ndarray

    @classmethod
    def of(cls, source: Split, indices: np.ndarray) -> ChosenPictures:
        names = [source.names[i] for i in indices]
        return cls(source.ids[indices], source.cameras[indices], names, source, indices)

    def load(self, index: int) -> np.ndarray:
        return self.source.load(int(self.indices[index]))

    def load_resized(self, index: int, height: int, width: int) -> np.ndarray:
        return self.source.load_resized(int(self.indices[index]), height, width)


@dataclass(frozen=True)
class ReidDataset:
    """A re-id dataset: `train` to learn from, `query` and `gallery` (and perhaps `multi_query`) of other
    people to test on.

    `identity_names` gives the name of an id where the dataset has names that are no numbers.
    """

    name: str
    train: Split
    query: Split
    gallery: Split
    multi_query: Split | None = None
    identity_names: dict[int, str] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        named = {
            "train": self.train,
            "query": self.query,
            "gallery": self.gallery,
            "multi_query": self.multi_query,
        }
        return {name: split for name, split in named.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """Identities in the training split."""
        return len(np.unique(self.train.ids))

    @property
    def train_labels(self) -> np.ndarray:
        """The class of each training picture, int64 (N,) in 0..num_classes-1, in the order of the sorted ids."""
        return np.unique(self.train.ids, return_inverse=True)[1].astype(np.int64).reshape(-1)

    @property
    def class_names(self) -> list[str]:
        """The name of each class, in the order of `train_labels`; equal names mean equal classes."""
        return [
            self.identity_names.get(int(identity), str(identity)) for identity in np.unique(self.train.ids)
        ]
