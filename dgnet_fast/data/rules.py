"""What a data set must have to be trained on and to be scored, asked before any work by every command that does so."""

from __future__ import annotations

import numpy as np

from dgnet_fast.data.base import UNKNOWN_CAMERA, ReidDataset, Split


def valid_queries(query: Split, gallery: Split) -> int:
    """Queries whose person is in the gallery, seen by another camera (by any, if cameras are unknown)."""
    seen: dict[int, set[int]] = {}
    for identity, camera in zip(gallery.ids.tolist(), gallery.cameras.tolist(), strict=True):
        seen.setdefault(identity, set()).add(camera)
    count = 0
    for identity, camera in zip(query.ids.tolist(), query.cameras.tolist(), strict=True):
        others = seen.get(identity, set())
        count += bool(others if camera == UNKNOWN_CAMERA else others - {camera})
    return count


def check_scorable(query: Split, gallery: Split) -> int:
    """The number of queries that can be scored. Raises ValueError if there is none."""
    if (valid := valid_queries(query, gallery)) == 0:
        raise ValueError(
            "no query has a valid match: its identity must be in the gallery, seen by another camera; "
            "check the identity folders and the cameras"
        )
    return valid


def check_trainable(dataset: ReidDataset) -> None:
    """Raise ValueError if the training split has fewer than two identities."""
    if dataset.num_classes < 2:
        raise ValueError(f"the training split has {dataset.num_classes} identity; at least 2 are needed")


def without_shots(query: Split, multi_query: Split) -> int:
    """Queries without a picture of their identity and camera in the multi-query set."""
    there = set(zip(multi_query.ids.tolist(), multi_query.cameras.tolist(), strict=True))
    asked = np.stack([query.ids, query.cameras], axis=1).tolist()
    return sum((identity, camera) not in there for identity, camera in asked)
