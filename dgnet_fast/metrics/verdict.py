"""Whether one ranking is better than another, or within the noise of the queries that were asked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEVEL = 2.0
"""Standard errors beyond which a difference counts."""


class Difference(NamedTuple):
    """Mean difference of two sets of paired values, its standard error, and the number of groups behind it."""

    mean: float
    error: float
    groups: int

    @property
    def word(self) -> str:
        """better, worse, or within noise."""
        if not self.error > 0:
            return (
                "within noise"
                if self.mean == 0 or self.groups < 2
                else "better"
                if self.mean > 0
                else "worse"
            )
        if abs(self.mean) <= LEVEL * self.error:
            return "within noise"
        return "better" if self.mean > 0 else "worse"


def paired_difference(ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray) -> Difference:
    """Ours minus theirs, query by query, with the standard error over ``groups``.

    Queries of one person succeed and fail together, so people are what was drawn: the error is that of a mean over
    groups (cluster-robust). It holds for other people of the same kind, and not for another training run: for that,
    repeat with other seeds.

    Args:
        ours, theirs: (Q,) one value a query, NaN where it has none; a query counts that has both.
        groups: (Q,) who is on each query.

    Raises:
        ValueError: shapes that differ, or no query with both values.
    """
    if not ours.shape == theirs.shape == groups.shape:
        raise ValueError(
            f"values of shapes {ours.shape} and {theirs.shape} for groups of shape {groups.shape}"
        )
    difference = ours - theirs
    known = np.isfinite(difference)
    if not known.any():
        raise ValueError("no query has a value on both sides")
    difference, index = difference[known], np.unique(groups[known], return_inverse=True)[1].reshape(-1)
    mean, count = float(difference.mean()), int(index.max()) + 1
    if count < 2:
        return Difference(mean, 0.0, count)
    sums = np.bincount(index, difference - mean)
    error = float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(difference))
    return Difference(mean, error, count)
