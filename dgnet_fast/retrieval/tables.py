"""Retrieval scores as result tables (see `dgnet_fast.report.tables`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dgnet_fast.data import ReidDataset
from dgnet_fast.metrics import RetrievalScores, SingleShotScores, evaluate_retrieval
from dgnet_fast.metrics.verdict import paired_difference
from dgnet_fast.metrics.verification import Verification


def retrieval_row(name: str, scores: RetrievalScores) -> list[Any]:
    """A row of the retrieval table, in percent."""
    values = [scores.rank[1], scores.rank[5], scores.rank[10], scores.mAP, scores.mINP]
    return [name, *(round(100 * v, 1) for v in values)]


def retrieval_table(dataset: ReidDataset, scores: dict[str, RetrievalScores]) -> dict[str, Any]:
    """Retrieval scores of several models as a result table."""
    query, gallery = dataset.query, dataset.gallery
    return {
        "title": "Retrieval on people never trained on",
        "columns": ["", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"],
        "rows": [retrieval_row(name, one) for name, one in scores.items()],
        "notes": [
            f"percent; {len(query)} queries, {len(gallery)} gallery pictures; mAP: step-wise AP over valid queries"
        ],
    }


def verdict(
    dataset: ReidDataset, ours: str, scores: RetrievalScores, theirs: str, rival: RetrievalScores
) -> str:
    """One sentence that says whether ``ours`` is better than ``theirs`` in mAP, worse, or within the noise of the
    queries.
    """
    difference = paired_difference(100 * scores.ap, 100 * rival.ap, dataset.query.ids)
    return (
        f"{ours} beside {theirs}: {difference.word} in mAP, by {difference.mean:+.1f} ± {difference.error:.1f} points (standard "
        f"error over {difference.groups} people; it does not include what another seed would change)."
    )


def table(scores: dict[str, RetrievalScores]) -> dict:
    """The scores as a result table, in percent."""
    rows = []
    for name, one in scores.items():
        kind, *how = name.split(", ")
        values = [*one.rank.values(), one.mAP, one.mINP, *one.rank_all.values(), one.mAP_trapezoid]
        rows.append([", ".join([f"{kind} query", *how]), *(round(100 * v, 2) for v in values)])
    first = next(iter(scores.values()))
    found = round(first.rank[1] * first.num_valid)
    ranks = [f"Rank-{k}" for k in first.rank]
    return {
        "title": "Retrieval",
        "columns": ["", *ranks, "mAP", "mINP", *(f"{r} (all)" for r in ranks), "mAP (trapezoid, all)"],
        "rows": rows,
        "notes": [
            f"percent; {first.num_valid} of {first.num_queries} queries have a valid match",
            "Rank, mAP (step-wise) and mINP are over valid queries, as fast-reid and torchreid report",
            "(all): divided by all queries, and mAP by the trapezoid rule, as the public DG-Net reports",
        ],
        "verdict": f"{found} of {first.num_valid} queries have the right person first.",
    }


def single_shot_table(scores: SingleShotScores) -> dict:
    """Single-shot scores as a result table, in percent."""
    return {
        "title": "Retrieval, single-gallery-shot",
        "columns": ["", *(f"Rank-{k}" for k in scores.rank)],
        "rows": [["single query", *(round(100 * v, 2) for v in scores.rank.values())]],
        "notes": [
            f"percent; {scores.num_valid} of {scores.num_queries} queries have a valid match",
            f"mean over {scores.repeats} galleries of one picture an identity (CUHK03's first protocol)",
        ],
    }


def verification_table(scores: Verification) -> dict:
    """Verification scores as a result table, in percent."""
    rates = [f"TAR at FAR {100 * rate:g} %" for rate in scores.tar]
    values = [None if value != value else round(100 * value, 2) for value in scores.tar.values()]
    return {
        "title": "Verification: same person or not",
        "columns": ["", *rates, "EER", "AUC"],
        "rows": [["single query", *values, round(100 * scores.eer, 2), round(100 * scores.auc, 2)]],
        "notes": [
            f"percent; {scores.genuine} pairs of the same person and {scores.impostor} of different people, without junk",
            "TAR: true accept rate; FAR: false accept rate; EER: equal error rate, less is better; AUC: area under the ROC curve",
        ],
        "verdict": f"A threshold that accepts as many wrong pairs as it rejects right ones errs in {100 * scores.eer:.1f} % of both.",
    }


def matrix(cells: dict[str, dict[str, dict[str, Any]]], how: str) -> dict:
    """The table of one way of ranking (``how``). ``cells``: scores by source, target and name of the scores."""
    name = ", ".join(filter(None, ("single", how)))
    labels = list(next(iter(cells.values())))
    columns = [f"{label} {what}" for label in labels for what in ("Rank-1", "mAP")]
    rows = []
    for source, by_target in cells.items():
        values = []
        for label in labels:
            scores: RetrievalScores = by_target[label][name]
            values += [round(100 * scores.rank[1], 2), round(100 * scores.mAP, 2)]
        rows.append([source, *values])
    return {
        "title": "Retrieval across data sets" + (f", {how}" if how else ""),
        "columns": ["source", *columns],
        "rows": rows,
        "notes": ["percent, single query; mAP: step-wise AP over valid queries"],
    }


def camera_table(
    dataset: ReidDataset, query: torch.Tensor, gallery: torch.Tensor, weight: float | None
) -> dict[str, Any]:
    """Retrieval scores for the queries of each camera, from query features (Q, F) and gallery features (G, F)."""
    labels = dataset.gallery.ids, dataset.gallery.cameras
    rows = []
    for camera in [*np.unique(dataset.query.cameras).tolist(), None]:
        chosen = np.ones(len(query), bool) if camera is None else dataset.query.cameras == camera
        one = evaluate_retrieval(
            query[torch.from_numpy(chosen)], dataset.query.ids[chosen], dataset.query.cameras[chosen], gallery, *labels,
            second_half_weight=weight,
        )  # fmt: skip
        name = "all" if camera is None else "unknown" if camera < 0 else f"camera {camera}"
        values = (round(100 * v, 1) for v in (one.rank[1], one.rank[5], one.mAP, one.mINP))
        rows.append([name, one.num_valid, *values])
    made = {
        "title": "Retrieval for each query camera",
        "columns": ["", "queries", "Rank-1", "Rank-5", "mAP", "mINP"],
        "rows": rows,
        "notes": ["percent, over queries with a valid match; mAP: step-wise"],
    }
    if len(rows) > 2:
        worst, best = (choose(rows[:-1], key=lambda row: row[4]) for choose in (min, max))
        made["verdict"] = f"Hardest: {worst[0]} (mAP {worst[4]}); easiest: {best[0]} (mAP {best[4]})."
    return made
