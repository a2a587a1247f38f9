"""Single-gallery-shot CMC, the protocol of CUHK03's first evaluation (Li et al., CVPR 2014)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.metrics.ranking import JUNK_ID, match_and_junk
from dgnet_fast.metrics.retrieval import checked_labels, no_valid_query


@dataclass(frozen=True)
class SingleShotScores:
    """`rank`: CMC at each asked rank in 0..1, the mean over repeats and valid queries."""

    rank: dict[int, float]
    repeats: int
    num_queries: int
    num_valid: int


def evaluate_single_shot(
    scores: Tensor | Iterable[Tensor],
    query_ids: Tensor | np.ndarray,
    query_cameras: Tensor | np.ndarray,
    gallery_ids: Tensor | np.ndarray,
    gallery_cameras: Tensor | np.ndarray,
    *,
    repeats: int = 100,
    seed: int = 0,
    ranks: Sequence[int] = (1, 5, 10, 20),
) -> SingleShotScores:
    """CMC where the gallery holds one image of each identity, drawn anew in each of `repeats`.

    Of a query's own identity an image is drawn that is not from the query's camera (any, where the camera is
    unknown); of every other identity any image. Junk (id -1) is left out; distractors (id 0) are one
    identity. The draws depend on `seed` alone, not on how the scores are cut. Equal scores rank in gallery
    order. Arguments as in `evaluate_scores`, whose scores it leaves as they are.

    Raises:
        ValueError: shapes that do not fit, `repeats` below 1, no ranks, and when no query has a match.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be at least 1")
    if not ranks or min(ranks) < 1:
        raise ValueError(f"ranks are {tuple(ranks)}; name at least one, each 1 or more")
    query_ids, query_cameras = checked_labels("query", query_ids, query_cameras)
    gallery_ids, gallery_cameras = checked_labels("gallery", gallery_ids, gallery_cameras)
    people, group, sizes = torch.unique(gallery_ids, return_inverse=True, return_counts=True)
    order = torch.argsort(group, stable=True)
    starts = sizes.cumsum(0) - sizes
    rng = np.random.default_rng(seed)
    drawn = torch.from_numpy(rng.random((repeats, len(people)), dtype=np.float32))
    shot = order[
        starts + (drawn * sizes).long().clamp(max=sizes - 1)
    ]  # (repeats, identities): a gallery index
    shot = shot[:, people != JUNK_ID]
    own_draws = torch.from_numpy(rng.random((len(query_ids), repeats), dtype=np.float32))

    ranks_found = torch.zeros(len(query_ids), repeats, dtype=torch.long)  # 0: no match
    done = 0
    for part in [scores] if isinstance(scores, Tensor) else scores:
        part = part.cpu()
        rows = slice(done, done + len(part))
        if part.shape != (len(query_ids[rows]), len(gallery_ids)):
            raise ValueError(
                f"scores from query {done} on have shape {tuple(part.shape)}; "
                f"expected ({len(query_ids[rows])}, {len(gallery_ids)})"
            )
        match, _ = match_and_junk(query_ids[rows], query_cameras[rows], gallery_ids, gallery_cameras)
        count = match.sum(1, keepdim=True)
        wanted = (own_draws[rows] * count).long().clamp(max=(count - 1).clamp(min=0))
        # The n-th match of each query: matches first, in gallery order.
        places = match.long().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(count.max()))]
        own = places.gather(1, wanted)  # (q, repeats)
        own_score = part.gather(1, own)
        for repeat in range(repeats):
            chosen = shot[repeat]
            rivals, mine = part[:, chosen], own_score[:, repeat, None]
            ahead = (rivals > mine) | ((rivals == mine) & (chosen < own[:, repeat, None]))
            ahead &= gallery_ids[chosen] != query_ids[rows, None]
            ranks_found[rows, repeat] = (1 + ahead.sum(1)) * (count[:, 0] > 0)
        done += len(part)
    if done != len(query_ids):
        raise ValueError(f"scores are of {done} queries, and {len(query_ids)} have labels")
    valid = ranks_found[:, 0] > 0
    if not valid.any():
        raise ValueError(no_valid_query(query_ids, query_cameras, gallery_ids, gallery_cameras))
    found = ranks_found[valid]
    return SingleShotScores(
        {int(k): float((found <= k).double().mean()) for k in ranks},
        repeats,
        len(query_ids),
        int(valid.sum()),
    )
