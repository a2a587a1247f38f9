"""Re-identification scores: cumulative matching characteristic (CMC), mean average precision, mINP.

The protocol is Market-1501's (Zheng et al., ICCV 2015). For each query the gallery is ranked by score; a
gallery image is *junk*, and taken out of the ranking, when its id is -1 or when it shows the query's own id
from the query's own camera. What is left of the query's id is a *match*. A query without any match is
*invalid*.

An unknown camera is written -1. A query or gallery image of unknown camera shares its camera with nothing, so
no same-camera filtering applies to it: a copy of the query in the gallery would then count as a match.

Two conventions of mAP are in use, and both are returned by name:

- `mAP`: the mean over the matches of (number of matches so far / rank), averaged over the valid queries. This
  is the step-wise AP that fast-reid and torchreid report.
- `mAP_trapezoid`: each match adds the mean of the precision before it and the precision at it, and the sum is
  divided by *all* queries, invalid ones counting 0. This is what the public DG-Net implementation reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

JUNK_ID = -1
UNKNOWN_CAMERA = -1

_LAST = torch.iinfo(torch.int64).max  # the sorting key of junk: behind every real key


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of one query set against one gallery, all in 0..1.

    Attributes:
        rank: CMC at each asked rank: the share of *valid* queries with a match among their first k.
        mAP: step-wise average precision, mean over valid queries (fast-reid, torchreid).
        mAP_trapezoid: trapezoid average precision, divided by all queries (public DG-Net implementation).
        rank_all: as `rank`, but divided by all queries (public DG-Net implementation).
        mINP: mean inverse negative penalty (Ye et al., TPAMI 2021): number of matches / rank of the hardest
            match, mean over valid queries.
        num_queries: all queries.
        num_valid: queries with at least one match in the gallery.
    """

    rank: dict[int, float]
    mAP: float
    mAP_trapezoid: float
    rank_all: dict[int, float]
    mINP: float
    num_queries: int
    num_valid: int


def evaluate_retrieval(
    query_features: Tensor | np.ndarray,
    query_ids: Tensor | np.ndarray,
    query_cameras: Tensor | np.ndarray,
    gallery_features: Tensor | np.ndarray,
    gallery_ids: Tensor | np.ndarray,
    gallery_cameras: Tensor | np.ndarray,
    *,
    second_half_weight: float | None = 0.5,
    chunk: int = 256,
    ranks: Sequence[int] = (1, 5, 10),
) -> RetrievalScores:
    """Rank the gallery for every query and score the rankings.

    The score of a pair is the dot product of its features with the second half of the *query's* feature (the
    fine-grained head of DG-Net) multiplied by `second_half_weight`. Products are computed in float32, on the
    device of the query features. Equal scores rank in gallery order (lower index first), so a given chunk
    size always gives the same result.

    Memory beyond the features is about 30 bytes x `chunk` x G, whatever the number of queries.

    Args:
        query_features: (Q, D), floating point, finite. Normally L2-normalised per half.
        query_ids: (Q,) integers.
        query_cameras: (Q,) integers; -1 means unknown.
        gallery_features: (G, D).
        gallery_ids: (G,) integers; -1 is junk.
        gallery_cameras: (G,) integers; -1 means unknown.
        second_half_weight: weight of the second half of D; 1 for features without halves (a teacher's), 0 for
            the first half alone, None for the second half alone (the public implementation's alpha of -1).
        chunk: queries ranked at once.
        ranks: the k of the CMC.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, an odd D with a weight other than 1,
            and when no query has a match: scores of 0 would then say nothing about the features.
    """
    query, query_ids, query_cameras = _checked_set("query", query_features, query_ids, query_cameras)
    gallery, gallery_ids, gallery_cameras = _checked_set(
        "gallery", gallery_features, gallery_ids, gallery_cameras
    )
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query features have {query.shape[1]} numbers and gallery features {gallery.shape[1]}; "
            "they must agree"
        )
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    if not ranks or min(ranks) < 1:
        raise ValueError(f"ranks are {tuple(ranks)}; name at least one, each 1 or more")
    device = query.device
    gallery, gallery_ids, gallery_cameras = (t.to(device) for t in (gallery, gallery_ids, gallery_cameras))
    query, gallery = _weighted(query, gallery, second_half_weight)

    per_query = np.zeros(
        (query.shape[0], 4)
    )  # rank of first match (1-based, 0 = invalid), AP, trapezoid AP, INP
    with _ieee_float32_matmul():
        for start in range(0, query.shape[0], chunk):
            rows = slice(start, start + chunk)
            same_id = query_ids[rows, None] == gallery_ids
            junk = query_cameras[rows, None] == gallery_cameras
            junk &= same_id
            junk &= query_cameras[rows, None] != UNKNOWN_CAMERA
            junk |= gallery_ids == JUNK_ID
            flags = _ranked_matches(query[rows] @ gallery.T, same_id & ~junk, junk)
            per_query[rows] = _score_rankings(flags)

    first, ap, trapezoid, inp = per_query.T
    valid = first > 0
    if not valid.any():
        raise ValueError(_no_valid_query(query_ids, query_cameras, gallery_ids, gallery_cameras))
    hits = {int(k): int((valid & (first <= k)).sum()) for k in ranks}
    return RetrievalScores(
        rank={k: n / int(valid.sum()) for k, n in hits.items()},
        mAP=float(ap[valid].mean()),
        mAP_trapezoid=float(trapezoid.mean()),
        rank_all={k: n / len(first) for k, n in hits.items()},
        mINP=float(inp[valid].mean()),
        num_queries=len(first),
        num_valid=int(valid.sum()),
    )


def multi_query_features(
    features: Tensor | np.ndarray,
    ids: Tensor | np.ndarray,
    cameras: Tensor | np.ndarray,
    query_ids: Tensor | np.ndarray,
    query_cameras: Tensor | np.ndarray,
) -> Tensor:
    """Multi-query features: for each query, the mean of all features of its id and camera.

    Args:
        features: (N, D), floating point: the multi-query set (Market-1501: `gt_bbox`).
        ids, cameras: (N,) integers of that set.
        query_ids, query_cameras: (Q,) integers of the queries. An unknown camera (-1) is a camera of its own.

    Returns:
        (Q, D) float32 on the device of `features`. Means are not normalised again.

    Raises:
        ValueError: a query's id and camera do not occur in the multi-query set.
    """
    features, ids, cameras = _checked_set("multi-query", features, ids, cameras)
    wanted = torch.stack((_integers("query ids", query_ids), _integers("query cameras", query_cameras)), 1)
    present = torch.stack((ids, cameras), 1)
    groups, group = torch.unique(torch.cat((present, wanted.to(present.device))), dim=0, return_inverse=True)
    group, group_of_query = group.split((len(present), len(wanted)))
    count = torch.bincount(group, minlength=len(groups))
    missing = (count[group_of_query] == 0).nonzero().flatten()
    if len(missing):
        identity, camera = wanted[missing[0]].tolist()
        raise ValueError(
            f"{len(missing)} of {len(wanted)} queries have no image of their id and camera in the "
            f"multi-query set, the first being id {identity} from camera {camera}"
        )
    sums = features.new_zeros(len(groups), features.shape[1]).index_add_(0, group, features)
    return (sums / count.clamp(min=1)[:, None])[group_of_query]


def _checked_set(
    name: str, features: Tensor | np.ndarray, ids: Tensor | np.ndarray, cameras: Tensor | np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """One set as float32 (N, D) and two int64 (N,), on the device of the features."""
    features = torch.as_tensor(features).detach()
    if features.ndim != 2 or not features.is_floating_point() or not len(features):
        raise ValueError(
            f"{name} features are {features.dtype} of shape {tuple(features.shape)}; "
            "expected floating point of shape (images, numbers), at least one image"
        )
    features = features.float()
    broken = int(
        (~torch.isfinite(features.sum(dim=1))).sum()
    )  # of the sum: no temporary as large as the features
    if broken:
        raise ValueError(f"{broken} of {len(features)} {name} features hold NaN or infinity")
    ids, cameras = _integers(f"{name} ids", ids), _integers(f"{name} cameras", cameras)
    if len(ids) != len(features) or len(cameras) != len(features):
        raise ValueError(
            f"the {name} set has {len(features)} features, {len(ids)} ids and {len(cameras)} cameras; "
            "the three must agree"
        )
    return features, ids.to(features.device), cameras.to(features.device)


def _integers(name: str, values: Tensor | np.ndarray) -> Tensor:
    values = torch.as_tensor(values)
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise ValueError(
            f"{name} are {values.dtype} of shape {tuple(values.shape)}; expected integers of shape (N,)"
        )
    return values.long()


def _weighted(query: Tensor, gallery: Tensor, second_half_weight: float | None) -> tuple[Tensor, Tensor]:
    """The features whose plain dot product is the score."""
    width = query.shape[1]
    if second_half_weight == 1:
        return query, gallery
    if width % 2:
        raise ValueError(
            f"features of {width} numbers have no halves to weight by {second_half_weight}; "
            "use second_half_weight=1"
        )
    half = width // 2
    if second_half_weight is None:
        return query[:, half:], gallery[:, half:]
    if second_half_weight == 0:
        return query[:, :half], gallery[:, :half]
    return torch.cat((query[:, :half], second_half_weight * query[:, half:]), 1), gallery


@contextmanager
def _ieee_float32_matmul() -> Iterator[None]:
    """Keep TF32 or bf16 products, which training may have allowed, out of the ranking."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _ranked_matches(scores: Tensor, match: Tensor, junk: Tensor) -> np.ndarray:
    """Bool (chunk, G): whether the gallery image at each rank is a match; junk is last. Overwrites `scores`.

    Score, gallery index and the match flag are packed into one int64 key, so that one plain sort of numbers
    gives a deterministic order and brings the flags along. On 2 AVX2 cores that is 7 times faster than a
    stable argsort with torch.sort (0.8 s against 5 to 7 s for Market-1501).
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
        array &= 1
        return array.astype(bool)
    return (keys.sort(dim=1).values & 1).bool().cpu().numpy()


def _score_rankings(flags: np.ndarray) -> np.ndarray:
    """(chunk, 4): rank of the first match, AP, trapezoid AP and INP of each ranking; 0 without a match."""
    row, position = flags.nonzero()
    total = np.bincount(row, minlength=len(flags))
    before = np.arange(len(row)) - np.repeat(np.cumsum(total) - total, total)  # matches ranked above this one
    precision = (before + 1) / (position + 1)
    # Precision just above a match; a match at the very top has none, and the convention there is 1.
    precision_above = np.where(position > 0, before / np.maximum(position, 1), 1.0)
    out = np.zeros((len(flags), 4))
    divisor = np.maximum(total, 1)
    out[:, 1] = np.bincount(row, precision, len(flags)) / divisor
    out[:, 2] = np.bincount(row, (precision + precision_above) / 2, len(flags)) / divisor
    first, last = before == 0, before + 1 == total[row]
    out[row[first], 0] = position[first] + 1
    out[row[last], 3] = precision[last]
    return out


def _no_valid_query(
    query_ids: Tensor, query_cameras: Tensor, gallery_ids: Tensor, gallery_cameras: Tensor
) -> str:
    shared = torch.isin(query_ids, gallery_ids[gallery_ids != JUNK_ID])
    cameras = sorted(set(query_cameras.tolist()) | set(gallery_cameras.tolist()))
    message = f"none of the {len(query_ids)} queries has a match in the gallery: "
    if not shared.any():
        return message + "query and gallery share no id"
    return message + (
        f"{int(shared.sum())} have images of their id there, but all from the query's own camera. "
        f"Cameras seen: {cameras[:20]}. Check how camera numbers are read from the file names, or set them "
        "to -1 (unknown) to rank without the same-camera rule"
    )
