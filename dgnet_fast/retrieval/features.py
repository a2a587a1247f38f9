"""Retrieval features of pictures and of whole splits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.data import ChosenPictures, ReidDataset, Split, normalize
from dgnet_fast.data.chunks import CHUNK, decoded_chunks
from dgnet_fast.metrics import multi_query_features
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode, fold_batch_norms
from dgnet_fast.report.progress import Progress


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
