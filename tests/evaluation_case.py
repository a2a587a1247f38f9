"""Rebuild the recorded retrieval cases of tests/cases/evaluation.json from their seeds and score them with
ours.

The file holds what the public code printed (four digits) on features that anyone can draw again:
with R = RandomState(seed), R.standard_normal((ids + 1, 1024)) gives one prototype an id (the last one for
junk), then gallery, query and multi-query sets follow, each as labels, cameras, noisy prototypes with
L2-normalised halves.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dgnet_fast.metrics import RetrievalScores, evaluate_retrieval, multi_query_features

CASES: list[dict] = json.loads((Path(__file__).parent / "cases" / "evaluation.json").read_text())
_ALPHA = {0.0: 0.0, 0.5: 0.5, -1.0: None}  # the printed alpha -> second_half_weight
_FeatureSet = tuple[np.ndarray, np.ndarray, np.ndarray]


def rebuild(case: dict) -> tuple[_FeatureSet, _FeatureSet, _FeatureSet]:
    """Query, gallery and multi-query sets of a case, each (features float32 (N, 1024), ids (N,), cameras
    (N,)).
    """
    random = np.random.RandomState(case["seed"])
    prototypes = random.standard_normal((case["ids"] + 1, 1024))

    def draw(lowest: int, count: int) -> _FeatureSet:
        ids = random.randint(lowest, case["ids"], size=count)
        cameras = random.randint(1, case["cameras"] + 1, size=count)
        halves = (prototypes[ids] + case["noise"] * random.standard_normal((count, 1024))).reshape(
            count, 2, 512
        )
        halves /= np.linalg.norm(halves, axis=2, keepdims=True)
        return halves.reshape(count, 1024).astype(np.float32), ids, cameras

    gallery = draw(-1, case["gallery"])
    query = draw(0, case["query"])
    multi = draw(0, 4 * case["query"])
    multi = tuple(np.concatenate(parts) for parts in zip(multi, query, strict=True))
    return query, gallery, multi


def check(case: dict) -> list[tuple[str, str]]:
    """(expected line, our line) for every line that the public code printed for this case."""
    query, gallery, multi = rebuild(case)
    ours = [
        f"Alpha:{alpha:.2f} {_printed(evaluate_retrieval(*query, *gallery, second_half_weight=weight))}"
        for alpha, weight in _ALPHA.items()
    ]
    mean = multi_query_features(*multi, *query[1:])
    ours.append(f"multi {_printed(evaluate_retrieval(mean, *query[1:], *gallery, second_half_weight=0.5))}")
    return list(zip(case["lines"], ours, strict=True))


def _printed(scores: RetrievalScores) -> str:
    ranks = " ".join(f"Rank@{k}:{value:.4f}" for k, value in scores.rank_all.items())
    return f"{ranks} mAP:{scores.mAP_trapezoid:.4f}"
