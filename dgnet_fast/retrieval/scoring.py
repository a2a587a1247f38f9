"""Retrieval scores from features: the plain ranking, its variants, and rank lists."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.data import ChosenPictures, ReidDataset, Split
from dgnet_fast.data.rules import check_scorable, without_shots
from dgnet_fast.metrics import (
    RetrievalScores,
    SingleShotScores,
    evaluate_retrieval,
    evaluate_scores,
    evaluate_single_shot,
    expand_queries,
    k_reciprocal_scores,
    multi_query_features,
    symmetric_features,
)
from dgnet_fast.metrics.ranking import match_and_junk
from dgnet_fast.metrics.verification import Verification, evaluate_verification
from dgnet_fast.report.progress import Progress
from dgnet_fast.report.rank_list import Ranked, RankedRow
from dgnet_fast.retrieval.extractor import Extractor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranking:
    """How a gallery is ranked, and what is scored in addition to the plain ranking.

    ``weight`` is the weight of the half of the feature that the second head gives (None: only that half); styles whose
    feature has no halves take 1. ``expand`` (alpha query expansion) and ``rerank`` (k-reciprocal re-ranking) each add a
    row of scores; if both are set, a further row applies both. ``single_shot`` is the number of single-shot galleries
    that are drawn; 0 means none.
    """

    weight: float | None = 0.5
    expand: bool = False
    neighbours: int = 10
    alpha: float = 3.0
    rerank: bool = False
    k1: int = 20
    k2: int = 6
    original_weight: float = 0.3
    single_shot: int = 0
    seed: int = 0


def ranking_for(extractor: Extractor, ranking: Ranking) -> Ranking:
    """`ranking` with a weight that fits the network: 1 for styles whose feature has no two halves."""
    return ranking if extractor.encoder.style == "AB" else replace(ranking, weight=1.0)


class LabelledFeatures(NamedTuple):
    """Features float32 (N, F) on the CPU with ids and cameras int64 (N,)."""

    features: Tensor
    ids: np.ndarray
    cameras: np.ndarray


def retrieval_sets(
    extractor: Extractor,
    dataset: ReidDataset,
    *,
    multi_query: bool = False,
    max_queries: int | None = None,
    progress: Progress | None = None,
) -> dict[str, LabelledFeatures]:
    """The features and labels from which the scores of a data set are computed, which all processes of a run compute
    together: 'gallery', 'single' (the queries), and
    'multi' (the multi-query features), if this is asked for and the data set has it.

    Raises ValueError before any feature is computed if no query has a match. Multi-query features that some queries lack
    are left out, and the log says so.

    ``max_queries`` takes only the first queries, and only their pictures of the multi-query set.
    """

    def labelled(split: Split) -> LabelledFeatures:
        return LabelledFeatures(
            extractor.split(split, together=True, progress=progress), split.ids, split.cameras
        )

    asked, more = dataset.query, dataset.multi_query
    if max_queries is not None and max_queries < len(asked):
        asked = ChosenPictures.of(asked, np.arange(max_queries))
        if more is not None:
            wanted = set(zip(asked.ids.tolist(), asked.cameras.tolist(), strict=True))
            labels = zip(more.ids.tolist(), more.cameras.tolist(), strict=True)
            theirs = [k for k, one in enumerate(labels) if one in wanted]
            more = ChosenPictures.of(more, np.array(theirs, dtype=np.int64))
    check_scorable(asked, dataset.gallery)
    if multi_query and more is not None and (missing := without_shots(asked, more)):
        logger.warning(
            f"multi-query is not scored: {missing} of {len(asked)} queries have no picture of their identity and camera in its set"
        )
        multi_query = False
    sets = {"gallery": labelled(dataset.gallery)}
    sets["single"] = query = labelled(asked)
    if multi_query and more is not None:
        sets["multi"] = query._replace(
            features=multi_query_features(*labelled(more), query.ids, query.cameras)
        )
    return sets


def score_features(
    query: LabelledFeatures, gallery: LabelledFeatures, ranking: Ranking
) -> dict[str, RetrievalScores]:
    """Scores by the name of the ranking: '' for the plain one, 'AQE', 're-ranked', and 'AQE, re-ranked' for both."""
    labels = (query.ids, query.cameras, gallery.ids, gallery.cameras)
    scores = {"": evaluate_retrieval(*query, *gallery, second_half_weight=ranking.weight)}
    if not (ranking.expand or ranking.rerank):
        return scores
    asked, searched = (symmetric_features(x.features, ranking.weight) for x in (query, gallery))
    variants = {"": asked}
    if ranking.expand:
        expanded = expand_queries(asked, searched, neighbours=ranking.neighbours, alpha=ranking.alpha)
        variants["AQE"] = expanded
        rows = (part @ searched.T for part in expanded.split(256))
        scores["AQE"] = evaluate_scores(rows, *labels)
    if ranking.rerank:
        options = {"k1": ranking.k1, "k2": ranking.k2, "original_weight": ranking.original_weight}
        for name, features in variants.items():
            rows = k_reciprocal_scores(features, searched, **options)
            scores[", ".join(filter(None, (name, "re-ranked")))] = evaluate_scores(rows, *labels)
    return scores


def score_single_shot(
    query: LabelledFeatures, gallery: LabelledFeatures, ranking: Ranking
) -> SingleShotScores:
    """The single-gallery-shot CMC of the plain ranking, over `ranking.single_shot` draws."""
    asked, searched = (symmetric_features(x.features, ranking.weight) for x in (query, gallery))
    return evaluate_single_shot(
        (part @ searched.T for part in asked.split(256)),
        query.ids,
        query.cameras,
        gallery.ids,
        gallery.cameras,
        repeats=ranking.single_shot,
        seed=ranking.seed,
    )


def verify(query: LabelledFeatures, gallery: LabelledFeatures, ranking: Ranking) -> Verification:
    """Every pair of a query and a gallery picture against a threshold, by the plain scores."""
    asked, searched = (symmetric_features(x.features, ranking.weight) for x in (query, gallery))
    rows = (part @ searched.T for part in asked.split(256))
    return evaluate_verification(rows, query.ids, query.cameras, gallery.ids, gallery.cameras)


def score_sets(
    sets: dict[str, LabelledFeatures], ranking: Ranking
) -> dict[str, RetrievalScores | SingleShotScores]:
    """Scores of `retrieval_sets` by name: 'single' and 'multi', also with variants of the ranking if they are asked for
    (such as 'single, re-ranked'), and 'single-shot'.
    """
    scores: dict[str, RetrievalScores | SingleShotScores] = {
        ", ".join(filter(None, (kind, how))): one
        for kind in ("single", "multi")
        if kind in sets
        for how, one in score_features(sets[kind], sets["gallery"], ranking).items()
    }
    if ranking.single_shot:
        scores["single-shot"] = score_single_shot(sets["single"], sets["gallery"], ranking)
    return scores


def score_retrieval(
    extractor: Extractor,
    dataset: ReidDataset,
    *,
    ranking: Ranking | None = None,
    max_queries: int | None = None,
    progress: Progress | None = None,
) -> dict[str, RetrievalScores | SingleShotScores]:
    """`score_sets` of the `retrieval_sets` of a data set. Without ``ranking``, only the plain ranking is scored."""
    sets = retrieval_sets(extractor, dataset, max_queries=max_queries, progress=progress)
    return score_sets(sets, ranking_for(extractor, ranking or Ranking()))


def rank_list_rows(
    sets: dict[str, LabelledFeatures], dataset: ReidDataset, ranking: Ranking, *, queries: int, top: int = 10
) -> list[RankedRow]:
    """Rank lists: the first ``top`` gallery pictures, without junk, for ``queries`` queries that are evenly spread."""
    query, gallery = sets["single"], sets["gallery"]
    count = len(query.ids)
    chosen = np.unique(np.linspace(0, count - 1, min(queries, count)).round().astype(int))
    asked, searched = (symmetric_features(x.features, ranking.weight) for x in (query, gallery))
    scores = asked[torch.from_numpy(chosen)] @ searched.T
    labels = query.ids[chosen], query.cameras[chosen], gallery.ids, gallery.cameras
    asked_ids, asked_cameras, ids, cameras = map(torch.from_numpy, labels)
    match, junk = match_and_junk(asked_ids, asked_cameras, ids, cameras)
    scores.masked_fill_(junk, -torch.inf)
    best, places = scores.topk(min(top, scores.shape[1]), dim=1)
    rows = []
    for row, index in enumerate(chosen.tolist()):
        results = [
            Ranked(dataset.gallery.load(place), f"{value:.3f}", "right" if match[row, place] else "wrong")
            for value, place in zip(best[row].tolist(), places[row].tolist(), strict=True)
            if value > -torch.inf
        ]
        rows.append(RankedRow(dataset.query.load(index), dataset.query.names[index], results))
    return rows


def chance_scores(dataset: ReidDataset, seed: int = 0) -> RetrievalScores:
    """The scores of features without information (Gaussian noise): the level of chance."""
    rng = np.random.default_rng(seed)
    query, gallery = dataset.query, dataset.gallery
    q, g = (rng.standard_normal((len(part), 16)).astype(np.float32) for part in (query, gallery))
    return evaluate_retrieval(
        q, query.ids, query.cameras, g, gallery.ids, gallery.cameras, second_half_weight=1.0
    )
