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
  divided by *all* queries, invalid ones counting 0. This is what the public code reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.metrics.ranking import JUNK_ID, count_ranks, match_and_junk, score_rankings, sort_ranks


@dataclass(frozen=True)
class RetrievalScores:
    """Scores of one query set against one gallery, all in 0..1.

    Attributes:
        rank: CMC at each asked rank: the share of *valid* queries with a match among their first k.
        mAP: step-wise average precision, mean over valid queries (fast-reid, torchreid).
        mAP_trapezoid: trapezoid average precision, divided by all queries (public code).
        rank_all: as `rank`, but divided by all queries (public code).
        mINP: mean inverse negative penalty (Ye et al., TPAMI 2021): number of matches / rank of the hardest
            match, mean over valid queries.
        num_queries: all queries.
        num_valid: queries with at least one match in the gallery.
        ap: step-wise average precision of each query, float64 (num_queries,), NaN for invalid ones.
    """

    rank: dict[int, float]
    mAP: float
    mAP_trapezoid: float
    rank_all: dict[int, float]
    mINP: float
    num_queries: int
    num_valid: int
    ap: np.ndarray = field(compare=False, repr=False)


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

    Memory beyond the features is 4 bytes x `chunk` x G on the CPU, whatever the number of queries, and about 30 bytes x
    `chunk` x G on another device.

    Args:
        query_features: (Q, D), floating point, finite. Normally L2-normalised per half.
        query_ids: (Q,) integers.
        query_cameras: (Q,) integers; -1 means unknown.
        gallery_features: (G, D).
        gallery_ids: (G,) integers; -1 is junk.
        gallery_cameras: (G,) integers; -1 means unknown.
        second_half_weight: weight of the second half of D; 1 for features without halves (a teacher's), 0 for
            the first half alone, None for the second half alone (the public code's alpha of -1).
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
    query, gallery = _weighted(query, gallery.to(query.device), second_half_weight)
    with ieee_float32_matmul():
        return evaluate_scores(
            (query[first : first + chunk] @ gallery.T for first in range(0, len(query), chunk)),
            query_ids,
            query_cameras,
            gallery_ids,
            gallery_cameras,
            ranks=ranks,
        )


def evaluate_scores(
    scores: Tensor | Iterable[Tensor],
    query_ids: Tensor | np.ndarray,
    query_cameras: Tensor | np.ndarray,
    gallery_ids: Tensor | np.ndarray,
    gallery_cameras: Tensor | np.ndarray,
    *,
    ranks: Sequence[int] = (1, 5, 10),
) -> RetrievalScores:
    """Score rankings that are given by their scores, as `evaluate_retrieval` does.

    Args:
        scores: (Q, G) float32, higher is better; or an iterable of consecutive rows of it, (q, G) each, which
            are overwritten. `k_reciprocal_scores` gives such.
        query_ids, query_cameras: (Q,) integers; camera -1 means unknown.
        gallery_ids, gallery_cameras: (G,) integers; id -1 is junk.
        ranks: the k of the CMC.

    Raises:
        ValueError: shapes that do not fit, no ranks, and when no query has a match.
    """
    if not ranks or min(ranks) < 1:
        raise ValueError(f"ranks are {tuple(ranks)}; name at least one, each 1 or more")
    query_ids, query_cameras = checked_labels("query", query_ids, query_cameras)
    gallery_ids, gallery_cameras = (x.cpu() for x in checked_labels("gallery", gallery_ids, gallery_cameras))
    # rank of first match (1-based, 0 = invalid), AP, trapezoid AP, INP
    per_query = np.zeros((len(query_ids), 4))
    order = np.argsort(gallery_ids.numpy(), kind="stable")
    done = 0
    for part in [scores.clone()] if isinstance(scores, Tensor) else scores:
        rows = slice(done, done + len(part))
        ids, cameras = (x.to(part.device) for x in (query_ids[rows], query_cameras[rows]))
        gallery_ids, gallery_cameras = gallery_ids.to(part.device), gallery_cameras.to(part.device)
        if part.dtype != torch.float32 or part.shape != (len(ids), len(gallery_ids)):
            raise ValueError(
                f"scores from query {done} on are {part.dtype} of shape {tuple(part.shape)}; "
                f"expected float32 of shape ({len(ids)}, {len(gallery_ids)})"
            )
        if part.device.type == "cpu":
            found = count_ranks(part, ids, cameras, gallery_ids, gallery_cameras, order)
        else:
            found = sort_ranks(part, *match_and_junk(ids, cameras, gallery_ids, gallery_cameras))
        per_query[rows] = score_rankings(found[0], found[1], len(part))
        done += len(part)
    if done != len(query_ids):
        raise ValueError(f"scores are of {done} queries, and {len(query_ids)} have labels")

    first, ap, trapezoid, inp = per_query.T
    valid = first > 0
    if not valid.any():
        raise ValueError(no_valid_query(query_ids, query_cameras, gallery_ids.cpu(), gallery_cameras.cpu()))
    hits = {int(k): int((valid & (first <= k)).sum()) for k in ranks}
    return RetrievalScores(
        rank={k: n / int(valid.sum()) for k, n in hits.items()},
        mAP=float(ap[valid].mean()),
        mAP_trapezoid=float(trapezoid.mean()),
        rank_all={k: n / len(first) for k, n in hits.items()},
        mINP=float(inp[valid].mean()),
        num_queries=len(first),
        num_valid=int(valid.sum()),
        ap=np.where(valid, ap, np.nan),
    )


def symmetric_features(features: Tensor | np.ndarray, second_half_weight: float | None = 0.5) -> Tensor:
    """Features (N, D) of unit length whose plain dot product ranks as `evaluate_retrieval` does.

    The weight goes to both sides of the product as its square root: for neighbours among all images, which a
    weight on the query alone does not define. `second_half_weight` as in `evaluate_retrieval`; with 0 or None
    (N, D/2).
    """
    features = torch.as_tensor(features).float()
    weight = second_half_weight**0.5 if second_half_weight else second_half_weight
    return F.normalize(_weighted(features, features, weight)[0], dim=1)


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
    ids, cameras = (_integers(f"{name} {what}", x) for what, x in (("ids", ids), ("cameras", cameras)))
    if len(ids) != len(features) or len(cameras) != len(features):
        raise ValueError(
            f"the {name} set has {len(features)} features, {len(ids)} ids and {len(cameras)} cameras; "
            "the three must agree"
        )
    return features, ids.to(features.device), cameras.to(features.device)


def checked_labels(
    name: str, ids: Tensor | np.ndarray, cameras: Tensor | np.ndarray
) -> tuple[Tensor, Tensor]:
    """Ids and cameras as int64 (N,)."""
    ids, cameras = _integers(f"{name} ids", ids), _integers(f"{name} cameras", cameras)
    if len(ids) != len(cameras) or not len(ids):
        raise ValueError(
            f"the {name} set has {len(ids)} ids and {len(cameras)} cameras; expected as many, at least one"
        )
    return ids, cameras


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
def ieee_float32_matmul() -> Iterator[None]:
    """Keep TF32 or bf16 products, which training may have allowed, out of the ranking."""
    # PyTorch sets the second when it runs
    mkldnn = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    backends = (torch.backends.cuda.matmul, mkldnn)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def no_valid_query(
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
