"""Which pictures are combined: pairs of appearance and structure, and people for figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dgnet_fast.data.pictures import NOBODY, Pictures


def spread(pictures: Pictures, count: int, seed: int = 0, *, skip: Sequence[int] = ()) -> list[int]:
    """Indices of ``count`` pictures for a figure, drawn with ``seed``; from different people if the people are known.

    ``skip`` are people to leave out. Returns fewer indices if there are not enough pictures.
    """
    order = np.random.default_rng(seed).permutation(len(pictures))
    seen, chosen = set(skip), []
    for index in order.tolist():
        person = int(pictures.people[index])
        if person != NOBODY and person in seen:
            continue
        seen.add(person)
        chosen.append(index)
        if len(chosen) == count:
            break
    return chosen


def random_pairs(appearances: Pictures, structures: Pictures, count: int, seed: int) -> np.ndarray:
    """``count`` different (appearance, structure) pairs of different people, int64 (count, 2), in random order.

    The same arguments give the same pairs. Raises ValueError if there are not enough pairs.
    """
    rows, columns = len(appearances), len(structures)
    rng = np.random.default_rng(seed)

    def allowed(pair: np.ndarray) -> np.ndarray:
        one, other = appearances.people[pair // columns], structures.people[pair % columns]
        return pair[(one != other) | (one == NOBODY)]

    if count * 4 > rows * columns:  # a large share of all: choose among all
        found = rng.permutation(allowed(np.arange(rows * columns)))
    else:
        found = np.empty(0, dtype=np.int64)
        for _ in range(64):
            drawn = allowed(rng.integers(0, rows * columns, 2 * count))
            found = np.concatenate([found, drawn])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
            if len(found) >= count:
                break
    if len(found) < count:
        raise ValueError(
            f"count is {count}; {appearances.label} and {structures.label} give {len(found)} pairs of different people"
        )
    return np.stack([found[:count] // columns, found[:count] % columns], axis=1)


def all_pairs(appearances: Pictures, structures: Pictures) -> np.ndarray:
    """Every pair (appearance, structure), int64 (N·M, 2), one structure after the other."""
    structure, appearance = np.divmod(
        np.arange(len(appearances) * len(structures)), np.int64(len(appearances))
    )
    return np.stack([appearance, structure], axis=1)
