"""Scoring a model: retrieval features and ranks, and pictures against the truth where it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.data import (
    ChosenPictures,
    ReidDataset,
    Split,
    cached_pictures,
    decode_split,
    denormalize,
    normalize,
)
from dgnet_fast.metrics import (
    RetrievalScores,
    SingleShotScores,
    colour_error,
    evaluate_retrieval,
    evaluate_scores,
    evaluate_single_shot,
    expand_queries,
    k_reciprocal_scores,
    multi_query_features,
    psnr,
    ssim,
    symmetric_features,
)
from dgnet_fast.metrics.ranking import match_and_junk
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode, fold_batch_norms
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.rank_list import Ranked, RankedRow

CHUNK = 512
"""Pictures decoded at a time: 50 MB at 256×128, so that a gallery of any size fits."""

Progress = Callable[[int, int], None]


@torch.no_grad()
def extract_features(encoder: AppearanceEncoder, pictures: Tensor, *, upsample: bool = True) -> Tensor:
    """Retrieval features of normalised pictures (N, 3, H, W) → (N, F), F the heads' features side by side.

    Every head's feature after its BatchNorm is L2-normalised, summed over the picture and its mirror image
    and normalised again (paper section 4.1): 1024 numbers in style AB.
    """
    both = upsample_small(torch.cat([pictures, pictures.flip(-1)]), upsample)
    features = encoder(both, BatchNormMode()).features
    halves = [F.normalize(one.float(), dim=1).unflatten(0, (2, -1)).sum(dim=0) for one in features]
    return torch.cat([F.normalize(half, dim=1) for half in halves], dim=1)


def decoded_chunks(
    split: Split,
    height: int,
    width: int,
    chunk: int = CHUNK,
    workers: int | None = None,
    cache: Path | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """(first index, uint8 pictures) of a split, a bounded number at a time.

    With a folder `cache` of whole splits they come from their file there, which is made at once if need be.
    """
    if (kept := cached_pictures(split, height, width, cache, workers=workers)) is not None:
        for first in range(0, len(split), chunk):
            yield first, kept.tensor[first : first + chunk]
            kept.release()
        return
    for first in range(0, len(split), chunk):
        part = _Slice(split, first, min(first + chunk, len(split)))
        yield first, decode_split(part, height, width, workers=workers)


class _Slice:
    """A run of pictures of a split, for `decode_split`."""

    def __init__(self, split: Split, first: int, last: int) -> None:
        self.split, self.first, self.last = split, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def load_resized(self, index: int, height: int, width: int) -> np.ndarray:
        return self.split.load_resized(self.first + index, height, width)


def split_features(
    encoder: AppearanceEncoder,
    split: Split,
    height: int,
    width: int,
    *,
    batch: int = 64,
    upsample: bool = True,
    workers: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Features (N, F) float32 on the CPU of all pictures of a split; `cache` as in `decoded_chunks`."""
    device = next(encoder.parameters()).device
    encoder = fold_batch_norms(encoder)
    rows = []
    for first, pictures in decoded_chunks(split, height, width, workers=workers, cache=cache):
        for part in pictures.split(batch):
            rows.append(extract_features(encoder, normalize(part.to(device)), upsample=upsample).cpu())
        if progress is not None:
            progress(min(first + CHUNK, len(split)), len(split))
    return torch.cat(rows)


@dataclass(frozen=True)
class Ranking:
    """How galleries are ranked and what is scored beside the plain ranking.

    ``weight`` is that of the second head's half of the feature (None: only that half); styles with one kind
    of feature take 1. ``expand`` (alpha query expansion) and ``rerank`` (k-reciprocal) each add a row of
    scores, and one of both together. ``single_shot`` is the number of single-shot galleries drawn, 0 for
    none.
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


class LabelledFeatures(NamedTuple):
    """Features float32 (N, F) on the CPU with ids and cameras int64 (N,)."""

    features: Tensor
    ids: np.ndarray
    cameras: np.ndarray


def labelled_features(
    encoder: AppearanceEncoder, split: Split, height: int, width: int, **options
) -> LabelledFeatures:
    """`split_features` of a split with their labels."""
    features = split_features(encoder, split, height, width, **options)
    return LabelledFeatures(features, split.ids, split.cameras)


def score_features(
    query: LabelledFeatures, gallery: LabelledFeatures, ranking: Ranking
) -> dict[str, RetrievalScores]:
    """Scores by the name of what was done to the ranking: '' for nothing, 'AQE', 're-ranked', and both."""
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


def retrieval_sets(
    encoder: AppearanceEncoder,
    dataset: ReidDataset,
    height: int,
    width: int,
    *,
    multi_query: bool = False,
    max_queries: int | None = None,
    **options,  # noqa: ANN003 - of split_features
) -> dict[str, LabelledFeatures]:
    """What a data set's scores are made from: 'gallery', 'single' queries, 'multi' where asked and there.

    ``max_queries`` takes the first queries only, and of the multi-query set what belongs to them.
    """
    encoder = fold_batch_norms(encoder)  # once for all splits
    asked, more = dataset.query, dataset.multi_query
    if max_queries is not None and max_queries < len(asked):
        asked = ChosenPictures.of(asked, np.arange(max_queries))
        if more is not None:
            wanted = set(zip(asked.ids.tolist(), asked.cameras.tolist(), strict=True))
            labels = zip(more.ids.tolist(), more.cameras.tolist(), strict=True)
            theirs = [k for k, one in enumerate(labels) if one in wanted]
            if theirs:  # with none the error is that of the whole set
                more = ChosenPictures.of(more, np.array(theirs))
    sets = {"gallery": labelled_features(encoder, dataset.gallery, height, width, **options)}
    sets["single"] = query = labelled_features(encoder, asked, height, width, **options)
    if multi_query and more is not None:
        extra = labelled_features(encoder, more, height, width, **options)
        sets["multi"] = query._replace(features=multi_query_features(*extra, query.ids, query.cameras))
    return sets


def score_sets(
    sets: dict[str, LabelledFeatures], ranking: Ranking
) -> dict[str, RetrievalScores | SingleShotScores]:
    """Scores of `retrieval_sets`: 'single', 'multi', each also 'single, re-ranked' and the like where asked,
    and 'single-shot'.
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
    encoder: AppearanceEncoder,
    dataset: ReidDataset,
    height: int,
    width: int,
    *,
    ranking: Ranking | None = None,
    **options,  # noqa: ANN003 - of retrieval_sets
) -> dict[str, RetrievalScores | SingleShotScores]:
    """`score_sets` of a data set's `retrieval_sets`; without ``ranking`` the plain one."""
    sets = retrieval_sets(encoder, dataset, height, width, **options)
    return score_sets(sets, ranking_for(encoder, ranking or Ranking()))


def rank_list_rows(
    sets: dict[str, LabelledFeatures], dataset: ReidDataset, ranking: Ranking, *, queries: int, top: int = 10
) -> list[RankedRow]:
    """The first ``top`` gallery pictures of ``queries`` queries, evenly spread, junk left out."""
    query, gallery = sets["single"], sets["gallery"]
    count = len(query.ids)
    chosen = np.unique(np.linspace(0, count - 1, min(queries, count)).round().astype(int))
    asked, searched = (symmetric_features(x.features, ranking.weight) for x in (query, gallery))
    scores = asked[torch.from_numpy(chosen)] @ searched.T
    labels = [torch.from_numpy(x) for x in (query.ids[chosen], query.cameras[chosen])]
    match, junk = match_and_junk(*labels, torch.from_numpy(gallery.ids), torch.from_numpy(gallery.cameras))
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


def ranking_for(encoder: AppearanceEncoder, ranking: Ranking) -> Ranking:
    """`ranking` with a weight that fits the encoder: 1 for styles whose feature has no two halves."""
    return ranking if encoder.style == "AB" else replace(ranking, weight=1.0)


class Truth(NamedTuple):
    """What a swap should be: ``picture`` uint8 (H, W, 3), and ``clothes`` bool (H, W), where it shows clothes."""

    picture: np.ndarray
    clothes: np.ndarray


def score_pictures(
    model: DGNet, pictures: Tensor, pairs: np.ndarray, truth: Callable[[int, int], Truth]
) -> dict[str, dict[str, float]]:
    """`likeness` of reconstructions, of swaps and, as what a swap must beat, of the unchanged structure picture: by
    "recon", "swap" and "copy".

    ``pictures`` uint8 (N, 3, H, W); ``pairs`` (M, 2) of (appearance i, structure j); ``truth(i, j)`` is the true
    picture of that swap, which only drawn data has.
    """
    device = next(model.parameters()).device
    rows: dict[str, list[dict[str, np.ndarray]]] = {"recon": [], "swap": [], "copy": []}
    for part in torch.from_numpy(pairs).split(32):
        appearance, structure = (normalize(pictures[part[:, k]].to(device)) for k in (0, 1))
        swapped = denormalize(model.swap(appearance, structure)).cpu()
        rebuilt = denormalize(model.swap(structure, structure)).cpu()
        target, clothes = (np.stack(x) for x in zip(*(truth(int(i), int(j)) for i, j in part), strict=True))
        own_clothes = np.stack([truth(int(j), int(j)).clothes for j in part[:, 1]])
        target = torch.from_numpy(target).permute(0, 3, 1, 2)
        original = pictures[part[:, 1]]
        rows["recon"].append(likeness(rebuilt, original, own_clothes))
        rows["swap"].append(likeness(swapped, target, clothes))
        rows["copy"].append(likeness(original, target, clothes))
    return {
        name: {k: float(np.nanmean(np.concatenate([one[k] for one in parts]))) for k in parts[0]}
        for name, parts in rows.items()
    }


LIKENESS = {
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 3),
    "clothes_colour": ("clothes: colour error", 2),
    "clothes_psnr": ("clothes: PSNR (dB)", 2),
    "rest_psnr": ("rest: PSNR (dB)", 2),
    "rest_ssim": ("rest: SSIM", 3),
}
"""What `likeness` measures: name, heading in a table, and digits there."""


def likeness(ours: Tensor, wanted: Tensor, clothes: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (N,) of pictures uint8 (N, 3, H, W): PSNR in dB and SSIM of the whole, on the clothes (bool (N, H, W)) the
    mean colour difference CIEDE2000 and PSNR, off the clothes PSNR and SSIM. NaN where there are no clothes, or only.
    """
    return {
        "psnr": psnr(ours, wanted),
        "ssim": ssim(ours, wanted),
        "clothes_colour": colour_error(ours, wanted, clothes),
        "clothes_psnr": psnr(ours, wanted, clothes),
        "rest_psnr": psnr(ours, wanted, ~clothes),
        "rest_ssim": ssim(ours, wanted, ~clothes),
    }


@torch.no_grad()
def swap_cells(model: DGNet, structures: Tensor, appearances: Tensor) -> Tensor:
    """All swaps of uint8 structures (R, 3, H, W) and appearances (C, 3, H, W): uint8 (R, C, 3, H, W), for a
    sample grid.
    """
    device = next(model.parameters()).device
    structure, _ = model.encode(normalize(structures.to(device)))
    _, code = model.encode(normalize(appearances.to(device)))
    rows = [denormalize(model.decode(one.expand(len(code), *one.shape), code)).cpu() for one in structure]
    return torch.stack(rows)
