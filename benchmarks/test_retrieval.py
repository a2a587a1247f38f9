"""Ranking a gallery the size of Market-1501's: CMC, mAP and mINP of ours against one query after another in NumPy."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from dgnet_fast.metrics import evaluate_retrieval, evaluate_scores, expand_queries, k_reciprocal_scores

QUERIES, GALLERY, NUMBERS, PEOPLE, CAMERAS = 3368, 19732, 1024, 750, 6
QUICK_QUERIES = 512


@cache
def sets(queries: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Query and gallery, each (features float32 of unit length, ids, cameras); a third are distractors."""
    random = np.random.default_rng(0)
    prototypes = random.standard_normal((PEOPLE + 1, NUMBERS), dtype=np.float32)

    def draw(count: int, distractors: float) -> tuple[np.ndarray, ...]:
        ids = random.integers(1, PEOPLE + 1, count)
        ids[random.random(count) < distractors] = 0
        features = 4.5 * random.standard_normal((count, NUMBERS), dtype=np.float32)
        features += np.where(ids[:, None] > 0, prototypes[ids], 0)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return features, ids, random.integers(1, CAMERAS + 1, count)

    return draw(queries, 0.0), draw(GALLERY, 0.33)


def plain(query: tuple[np.ndarray, ...], gallery: tuple[np.ndarray, ...]) -> tuple[float, float, float]:
    """Rank-1, mAP and mINP, ranking and scoring one query after another."""
    scores = query[0] @ gallery[0].T
    first, precisions, penalties = [], [], []
    for row, identity, camera in zip(scores, query[1], query[2], strict=True):
        order = np.argsort(-row, kind="stable")
        same = gallery[1][order] == identity
        matches = same[~(same & (gallery[2][order] == camera))]
        if not matches.any():
            continue
        places = np.flatnonzero(matches)
        found = np.arange(1, len(places) + 1)
        first.append(places[0] == 0)
        precisions.append(np.mean(found / (places + 1)))
        penalties.append(found[-1] / (places[-1] + 1))
    return float(np.mean(first)), float(np.mean(precisions)), float(np.mean(penalties))


def row(queries: int, name: str, group: str = "ranking") -> dict:
    return {
        "section": "evaluation", "group": f"{group} of {queries}×{GALLERY}×{NUMBERS}", "name": name,
        "baseline": name.startswith("plain"), "dtype": "fp32", "layout": "-", "batch": queries, "items": queries,
    }  # fmt: skip


def on(device: str, part: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
    return [torch.from_numpy(x).to(device) for x in part]


@pytest.mark.parametrize("how", ["plain NumPy, query by query", "ours"])
def test_ranking(measured, device, full, how):
    query, gallery = sets(QUERIES if full else QUICK_QUERIES)
    if how == "ours":
        ours = [*on(device, query), *on(device, gallery)]
        scores = evaluate_retrieval(*ours, second_half_weight=1)
        if not full:
            expected = plain(query, gallery)
            assert (scores.rank[1], scores.mAP, scores.mINP) == pytest.approx(expected, abs=1e-4)
        measured(lambda: evaluate_retrieval(*ours, second_half_weight=1), **row(len(query[0]), how))
    else:
        measured(lambda: plain(query, gallery), **row(len(query[0]), how))


@pytest.mark.parametrize("how", ["re-ranking", "query expansion"])
def test_extras(measured, device, full, how):
    if how == "re-ranking" and device == "cpu" and not full:
        pytest.skip("20 s a round on a CPU; --full measures it")
    query, gallery = sets(QUERIES if full else QUICK_QUERIES)
    asked, searched = on(device, query), on(device, gallery)
    labels = (*asked[1:], *searched[1:])

    def ranked():
        if how == "re-ranking":
            return evaluate_scores(k_reciprocal_scores(asked[0], searched[0]), *labels)
        expanded = expand_queries(asked[0], searched[0])
        return evaluate_scores((part @ searched[0].T for part in expanded.split(256)), *labels)

    measured(ranked, **row(len(asked[0]), f"ours, {how}", how))
