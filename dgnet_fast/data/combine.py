"""Several data sets combined for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dgnet_fast.data.base import UNKNOWN_CAMERA, ReidDataset, Split


@dataclass(frozen=True)
class JoinedSplit(Split):
    """The pictures of several splits, one after the other."""

    parts: tuple[Split, ...]

    def _locate(self, index: int) -> tuple[Split, int]:
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)

    def load(self, index: int) -> np.ndarray:
        part, place = self._locate(index)
        return part.load(place)

    def load_resized(self, index: int, height: int, width: int) -> np.ndarray:
        part, place = self._locate(index)
        return part.load_resized(place, height, width)


def combine(datasets: Sequence[ReidDataset]) -> ReidDataset:
    """The training pictures of all `datasets`; query and gallery are those of the first.

    Identities and cameras of different sets are different ones: those of the first keep their numbers, the
    others get numbers behind them. Class names are `SET/IDENTITY`, where a second set of one name is called
    NAME-2. To score on the other sets' people, use `dgnet_fast.cross_evaluate`.
    """
    first = datasets[0]
    counts: Counter[str] = Counter()
    titles = []
    for dataset in datasets:
        counts[dataset.name] += 1
        titles.append(dataset.name + (f"-{counts[dataset.name]}" if counts[dataset.name] > 1 else ""))
    ids, cameras, names, identity_names = [], [], [], {}
    next_id = next_camera = 0
    for title, dataset in zip(titles, datasets, strict=True):
        train = dataset.train
        ids.append(train.ids + next_id)
        cameras.append(np.where(train.cameras == UNKNOWN_CAMERA, UNKNOWN_CAMERA, train.cameras + next_camera))
        names += [f"{title}/{name}" for name in train.names]
        for identity in np.unique(train.ids).tolist():
            label = dataset.identity_names.get(identity, str(identity))
            identity_names[identity + next_id] = f"{title}/{label}"
        splits = dataset.splits.values() if dataset is first else (train,)
        next_id += 1 + max(int(split.ids.max()) for split in splits)
        next_camera += 1 + max(0, *(int(split.cameras.max()) for split in splits))
    for identity, label in first.identity_names.items():
        identity_names.setdefault(identity, f"{titles[0]}/{label}")
    train = JoinedSplit(
        np.concatenate(ids), np.concatenate(cameras), names, tuple(dataset.train for dataset in datasets)
    )
    return ReidDataset("+".join(titles), train, first.query, first.gallery, first.multi_query, identity_names)
