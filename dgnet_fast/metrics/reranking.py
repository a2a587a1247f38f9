"""Re-ranking with k-reciprocal encoding (Zhong et al., CVPR 2017), in bounded memory.

Two images are k-reciprocal neighbours when each is among the k nearest of the other. Every image is encoded
by its k1-reciprocal neighbours (and those of its neighbours that mostly agree), weighted by exp(-distance)
and averaged over its k2 nearest; the Jaccard distance of two encodings is mixed with the original distance.

The published algorithm holds several dense (Q+G)² matrices, 2.1 GB each for Market-1501. Here the encodings
are sparse and distances are made a few rows at a time, so memory beyond the features is about 12 bytes x
`chunk` x (Q+G) and 12 bytes for each of the encodings' entries (some 100 an image).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.metrics.retrieval import ieee_float32_matmul

if TYPE_CHECKING:  # imported where it is used: re-ranking is not part of every start
    from scipy import sparse

PAIRS = 8192
"""Pairs of features multiplied at a time: 64 MB at 1024 numbers."""
MINIMA = 1 << 20
"""Entries of two encodings compared at a time: about 40 MB (a single query's may be more)."""


def k_reciprocal_scores(
    query: Tensor,
    gallery: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
    chunk: int = 256,
) -> Iterator[Tensor]:
    """Re-ranked scores, float32 (q, G) for `chunk` queries at a time: minus the published final distance.

    Args:
        query: (Q, D) floating point; neighbours are by Euclidean distance, so weights of parts must be in the
            features already (`symmetric_features`).
        gallery: (G, D).
        k1, k2: neighbours of the reciprocal sets and of the averaging.
        original_weight: the paper's lambda, the share of the original distance.
        chunk: rows of distances held at once.

    The scores come on the CPU; products are made on the features' device. Images at exactly equal distances
    are neighbours in any order. Raises ValueError on shapes that do not fit and values out of range.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1] or not len(gallery):
        raise ValueError(
            f"query and gallery features have shapes {tuple(query.shape)} and {tuple(gallery.shape)}; "
            "expected (Q, D) and (G, D)"
        )
    for name, value in (("k1", k1), ("k2", k2), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not 0 <= original_weight <= 1:
        raise ValueError(f"original_weight is {original_weight}; it must be 0 to 1")
    return _scores(query.float(), gallery.to(query.device).float(), k1, k2, original_weight, chunk)


def _scores(
    query: Tensor, gallery: Tensor, k1: int, k2: int, original_weight: float, chunk: int
) -> Iterator[Tensor]:
    features = torch.cat([query, gallery])
    nearest, farthest = _neighbours(features, k1 + 1, chunk)
    encodings = _encode(features, nearest, farthest, k1)
    if k2 > 1:
        count = min(k2, nearest.shape[1])
        mean = _rows_of(nearest[:, :count], np.full(nearest[:, :count].shape, 1.0 / count, np.float32))
        encodings = mean @ encodings
    asked, inverted = _halves(encodings, len(query))
    norms = gallery.square().sum(1)
    for first in range(0, len(query), chunk):
        rows = slice(first, min(first + chunk, len(query)))
        with ieee_float32_matmul():
            original = _distances(query[rows], gallery, norms).cpu().numpy()
        original /= farthest[rows, None]
        shared = _shared(asked[rows], inverted)
        final = (1 - original_weight) * (1 - shared / (2 - shared)) + original_weight * original
        yield torch.from_numpy(-final.astype(np.float32))


def _distances(rows: Tensor, features: Tensor, norms: Tensor) -> Tensor:
    """Squared Euclidean distances (q, N)."""
    products = rows @ features.T
    return products.mul_(-2).add_(norms).add_(rows.square().sum(1, keepdim=True)).clamp_(min=0)


def _neighbours(features: Tensor, count: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest of each image, itself first: int64 (N, count); and its largest distance, (N,)."""
    count = min(count, len(features))
    norms = features.square().sum(1)
    nearest = np.empty((len(features), count), dtype=np.int64)
    farthest = np.empty(len(features), dtype=np.float32)
    for first in range(0, len(features), chunk):
        part = features[first : first + chunk]
        rows = slice(first, first + len(part))
        with ieee_float32_matmul():
            distances = _distances(part, features, norms)
        farthest[rows] = distances.amax(1).clamp(min=1e-12).cpu().numpy()
        own = torch.arange(len(part), device=part.device)
        distances[own, own + first] = -1  # itself, where rounding or a copy would come before it
        nearest[rows] = distances.topk(count, dim=1, largest=False).indices.cpu().numpy()
    return nearest, farthest


def _reciprocal(nearest: np.ndarray, count: int) -> np.ndarray:
    """Bool (N, count): whether each of the first `count` neighbours has the image among its own."""
    near = nearest[:, :count]
    found = np.empty(near.shape, dtype=bool)
    for first in range(0, len(near), PAIRS):
        rows = slice(first, first + PAIRS)
        own = np.arange(first, min(first + PAIRS, len(near)))
        found[rows] = (near[near[rows]] == own[:, None, None]).any(axis=2)
    return found


def _encode(features: Tensor, nearest: np.ndarray, farthest: np.ndarray, k1: int) -> sparse.csr_array:
    """The encodings before averaging: sparse (N, N), each row summing to 1."""
    from scipy import sparse

    half = min(int(np.around(k1 / 2)) + 1, nearest.shape[1])
    mutual, mutual_half = _reciprocal(nearest, nearest.shape[1]), _reciprocal(nearest, half)
    half_sizes = mutual_half.sum(1)
    rows, columns = [], []
    step = 1024
    for first in range(0, len(nearest), step):
        part = slice(first, first + step)
        near, kept = nearest[part], mutual[part]  # (n, K): the reciprocal set R of each row
        own_set = np.where(kept, near, -1)
        members = nearest[near, :half]  # (n, K, h): the half-size sets of the candidates
        in_half = mutual_half[near] & kept[:, :, None]
        in_both = np.zeros(members.shape, dtype=bool)
        for k in range(own_set.shape[1]):
            in_both |= members == own_set[:, k, None, None]
        # A candidate's set joins when more than two thirds of it are in R already.
        joins = 3 * (in_both & in_half).sum(2) > 2 * half_sizes[near]
        in_half &= joins[:, :, None]
        local = np.arange(len(near))
        rows += [first + local.repeat(kept.sum(1)), first + local.repeat(in_half.sum((1, 2)))]
        columns += [near[kept], members[in_half]]
    pairs = np.unique(np.concatenate(rows) * len(nearest) + np.concatenate(columns))
    row, column = np.divmod(pairs, len(nearest))
    weights = np.empty(len(pairs), dtype=np.float32)
    for first in range(0, len(pairs), PAIRS):
        part = slice(first, first + PAIRS)
        one, other = (features[torch.from_numpy(x[part]).to(features.device)] for x in (row, column))
        weights[part] = (one - other).square().sum(1).cpu().numpy()
    weights = np.exp(-weights / farthest[row])
    weights /= np.bincount(row, weights, len(nearest))[row].astype(np.float32)
    return sparse.csr_array((weights, (row, column)), shape=(len(nearest), len(nearest)))


def _rows_of(columns: np.ndarray, values: np.ndarray) -> sparse.csr_array:
    from scipy import sparse

    count, width = columns.shape
    starts = np.arange(0, columns.size + 1, width)
    return sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=(count, count))


def _halves(encodings: Any, queries: int) -> tuple[sparse.csr_array, sparse.csc_array]:
    """Those of the queries by row, those of the gallery by column."""
    return encodings[:queries].tocsr(), encodings[queries:].tocsc()


def _shared(asked: sparse.csr_array, inverted: sparse.csc_array) -> np.ndarray:
    """Sum of the element-wise minima of each asked row and each row of `inverted`: float64 (q, G)."""
    gallery = inverted.shape[0]  # pyright: ignore[reportOptionalSubscript]  # SciPy has no annotations
    shared = np.zeros((len(asked.indptr) - 1, gallery))
    met = np.diff(inverted.indptr)[asked.indices]  # gallery entries that each entry of `asked` meets
    work = np.add.reduceat(np.append(met, 0), asked.indptr[:-1]) * (np.diff(asked.indptr) > 0)
    group = np.cumsum(work) // MINIMA
    for part in np.split(np.arange(len(work)), np.flatnonzero(np.diff(group)) + 1):
        first, last = asked.indptr[part[0]], asked.indptr[part[-1] + 1]
        lengths = met[first:last]
        ends = np.cumsum(lengths)
        offsets = inverted.indptr[asked.indices[first:last]].astype(np.int64) - (ends - lengths)
        place = np.arange(ends[-1] if len(ends) else 0) + offsets.repeat(lengths)
        minima = np.minimum(asked.data[first:last].repeat(lengths), inverted.data[place])
        row = np.arange(len(part)).repeat(np.diff(asked.indptr[part[0] : part[-1] + 2]))
        flat = (row * gallery).repeat(lengths) + inverted.indices[place]
        shared[part] = np.bincount(flat, minima, len(part) * gallery).reshape(len(part), gallery)
    return shared
