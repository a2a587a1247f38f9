"""Where the matches of a query stand in its ranking, and what follows from it for one query."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

JUNK_ID = -1
UNKNOWN_CAMERA = -1
COUNTED = 64
"""Matches of a query up to which counting ranks is faster than sorting the gallery."""

_LAST = torch.iinfo(torch.int64).max  # the sorting key of junk: behind every real key


def match_and_junk(
    query_ids: Tensor, query_cameras: Tensor, gallery_ids: Tensor, gallery_cameras: Tensor
) -> tuple[Tensor, Tensor]:
    """Bool (Q, G) twice: which gallery images match each query, and which are taken out as junk."""
    same_id = query_ids[:, None] == gallery_ids
    junk = query_cameras[:, None] == gallery_cameras
    junk &= same_id
    junk &= query_cameras[:, None] != UNKNOWN_CAMERA
    junk |= gallery_ids == JUNK_ID
    return same_id & ~junk, junk


def count_ranks(
    scores: Tensor,
    query_ids: Tensor,
    query_cameras: Tensor,
    gallery_ids: Tensor,
    gallery_cameras: Tensor,
    order: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Query and rank (from 0) of every match, int64 (M,) each, by query and rank. Overwrites `scores`.

    A match ranks behind all images of a higher score and those of the same score before it in the gallery, so
    counting them needs no sort: for Market-1501 on one AVX2 core 0.5 s against 1.4 s. `order` sorts the
    gallery's ids; a query of more than `COUNTED` matches is sorted all the same.
    """
    rows = scores.numpy()
    rows[:, gallery_ids.numpy() == JUNK_ID] = -np.inf
    sorted_ids = gallery_ids.numpy()[order]
    first = np.searchsorted(sorted_ids, query_ids.numpy())
    last = np.searchsorted(sorted_ids, query_ids.numpy(), side="right")
    cameras = gallery_cameras.numpy()
    found = []
    for row, identity, camera, low, high in zip(
        rows, query_ids.tolist(), query_cameras.tolist(), first, last, strict=True
    ):
        own = order[low:high] if identity != JUNK_ID else order[:0]
        if camera != UNKNOWN_CAMERA:
            junk = cameras[own] == camera
            row[own[junk]] = -np.inf
            own = own[~junk]
        if len(own) > COUNTED:
            match = torch.zeros(1, len(row), dtype=torch.bool)
            match[0, torch.from_numpy(own)] = True
            one = torch.from_numpy(row)[None]
            found.append(sort_ranks(one, match, torch.zeros_like(match))[1])
            continue
        found.append(
            np.sort(
                np.fromiter(
                    (
                        np.count_nonzero(row[:g] >= row[g]) + np.count_nonzero(row[g + 1 :] > row[g])
                        for g in own
                    ),
                    dtype=np.int64,
                    count=len(own),
                )
            )
        )
    query = np.arange(len(rows)).repeat([len(ranks) for ranks in found])
    return query, np.concatenate(found) if found else query


def sort_ranks(scores: Tensor, match: Tensor, junk: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """As `count_ranks`, by sorting on the scores' device; `match` and `junk` bool (chunk, G).

    Score, gallery index and the match flag are packed into one int64 key, so that one plain sort of numbers
    gives a deterministic order and brings the flags along: 7 times faster than a stable argsort.
    """
    scores += 0.0  # -0.0 becomes 0.0: the two are equal scores
    bits = scores.view(torch.int32)
    sign = bits >> 31  # 0 or -1
    bits ^= sign.bitwise_and_(0x7FFFFFFF)  # now in the order of the floats
    keys = bits.bitwise_not_().long()
    keys <<= 32
    keys |= torch.arange(scores.shape[1], device=scores.device) << 1
    keys |= match
    keys.masked_fill_(junk, _LAST - 1)  # even: no match
    if keys.device.type == "cpu":
        array = keys.numpy()
        array.sort(axis=1)
        row, position = (array & 1).astype(bool).nonzero()
    else:
        row, position = (keys.sort(dim=1).values & 1).bool().cpu().numpy().nonzero()
    return row, position


def score_rankings(row: np.ndarray, position: np.ndarray, count: int) -> np.ndarray:
    """(count, 4): rank of the first match, AP, trapezoid AP and INP of each of `count` rankings; 0 without a
    match. `row` and `position` are the ranking and rank (from 0) of every match, in this order.
    """
    total = np.bincount(row, minlength=count)
    before = np.arange(len(row)) - np.repeat(np.cumsum(total) - total, total)  # matches ranked above this one
    precision = (before + 1) / (position + 1)
    # Precision just above a match; a match at the very top has none, and the convention there is 1.
    precision_above = np.where(position > 0, before / np.maximum(position, 1), 1.0)
    out = np.zeros((count, 4))
    divisor = np.maximum(total, 1)
    out[:, 1] = np.bincount(row, precision, count) / divisor
    out[:, 2] = np.bincount(row, (precision + precision_above) / 2, count) / divisor
    first, last = before == 0, before + 1 == total[row]
    out[row[first], 0] = position[first] + 1
    out[row[last], 3] = precision[last]
    return out
