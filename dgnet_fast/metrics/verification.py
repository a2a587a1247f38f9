"""Verification: whether two pictures show the same person, decided by a threshold on their score (ROC, FAR, EER)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.metrics.ranking import match_and_junk
from dgnet_fast.metrics.retrieval import checked_labels

BINS = 1 << 16
RATES = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Verification:
    """Scores of all pairs of a query and a gallery picture that is no junk, all in 0..1.

    Attributes:
        tar: true accept rate at each false accept rate (FAR) of `RATES`; NaN where there are too few pairs to know it.
        eer: equal error rate, where as many wrong pairs are accepted as right ones are rejected.
        auc: area under the ROC curve.
        genuine, impostor: number of pairs of the same person, and of different people.
        far, true_accept: the ROC curve, float64, from (0, 0) to (1, 1).
    """

    tar: dict[float, float]
    eer: float
    auc: float
    genuine: int
    impostor: int
    far: np.ndarray = field(compare=False, repr=False)
    true_accept: np.ndarray = field(compare=False, repr=False)


def evaluate_verification(
    scores: Iterable[Tensor],
    query_ids: Tensor | np.ndarray,
    query_cameras: Tensor | np.ndarray,
    gallery_ids: Tensor | np.ndarray,
    gallery_cameras: Tensor | np.ndarray,
    *,
    rates: Sequence[float] = RATES,
) -> Verification:
    """Scores of every pair against a threshold.

    Args:
        scores: consecutive rows (q, G) of cosines in -1..1, higher is more similar. They are counted in 65 536 bins, so
            memory does not grow with the number of pairs, and thresholds are exact to 3e-5.
        query_ids, query_cameras, gallery_ids, gallery_cameras: as in `evaluate_retrieval`. Junk is left out: gallery
            pictures of id -1, and those of the query's own person in its own camera.
        rates: false accept rates at which the true accept rate is given.

    Raises:
        ValueError: labels that do not fit, or no pair of the same or of different people.
    """
    query_ids, query_cameras = checked_labels("query", query_ids, query_cameras)
    gallery_ids, gallery_cameras = checked_labels("gallery", gallery_ids, gallery_cameras)
    counts = np.zeros((2, BINS), dtype=np.int64)
    done = 0
    for part in scores:
        rows = slice(done, done + len(part))
        match, junk = match_and_junk(query_ids[rows], query_cameras[rows], gallery_ids, gallery_cameras)
        place = ((part.cpu().double() + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
        for kind, chosen in enumerate((match & ~junk, ~match & ~junk)):
            counts[kind] += torch.bincount(place[chosen], minlength=BINS).numpy()
        done += len(part)
    genuine, impostor = (int(n) for n in counts.sum(axis=1))
    if not genuine or not impostor:
        raise ValueError(
            f"there are {genuine} pairs of the same person and {impostor} of different people; both are needed"
        )
    accepted = counts[:, ::-1].cumsum(axis=1) / np.array([[genuine], [impostor]])
    right, wrong = (np.concatenate([[0.0], row]) for row in accepted)  # from the strictest threshold on
    crossing = int(np.argmin(np.abs(wrong - (1 - right))))
    tar = {
        rate: float(right[np.searchsorted(wrong, rate, side="right") - 1])
        if rate * impostor >= 1
        else float("nan")
        for rate in rates
    }
    kept = np.flatnonzero(np.diff(right, prepend=-1) + np.diff(wrong, prepend=-1))
    return Verification(
        tar=tar,
        eer=float((wrong[crossing] + 1 - right[crossing]) / 2),
        auc=float(np.trapezoid(right, wrong)),
        genuine=genuine,
        impostor=impostor,
        far=wrong[kept],
        true_accept=right[kept],
    )
