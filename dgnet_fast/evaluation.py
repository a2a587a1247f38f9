"""Scoring a model: retrieval features and ranks, and pictures against the truth where it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.data import ReidDataset, Split, decode_split, denormalize, normalize
from dgnet_fast.metrics import RetrievalScores, evaluate_retrieval, multi_query_features, psnr, ssim
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.dgnet import DGNet

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
    split: Split, height: int, width: int, chunk: int = CHUNK, workers: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(first index, uint8 pictures) of a split, a bounded number at a time."""
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
    progress: Progress | None = None,
) -> Tensor:
    """Features (N, F) float32 on the CPU of all pictures of a split."""
    device = next(encoder.parameters()).device
    rows = []
    for first, pictures in decoded_chunks(split, height, width, workers=workers):
        for part in pictures.split(batch):
            rows.append(extract_features(encoder, normalize(part.to(device)), upsample=upsample).cpu())
        if progress is not None:
            progress(min(first + CHUNK, len(split)), len(split))
    return torch.cat(rows)


def score_retrieval(
    encoder: AppearanceEncoder,
    dataset: ReidDataset,
    height: int,
    width: int,
    *,
    weight: float | None = 0.5,
    multi_query: bool = False,
    max_queries: int | None = None,
    **options,  # noqa: ANN003 - of split_features
) -> dict[str, RetrievalScores]:
    """Scores of a data set's query against its gallery: {'single': ..., 'multi': ... where asked and there}.

    ``weight`` is that of the second head's half of the feature (None: only that half); styles with one kind
    of feature take 1. ``max_queries`` scores the first queries only.
    """
    if encoder.style != "AB":
        weight = 1.0
    query, gallery = dataset.query, dataset.gallery
    count = min(len(query), max_queries or len(query))
    query_part = _LabelledSlice(query, count)
    gallery_features = split_features(encoder, gallery, height, width, **options)
    query_features = split_features(encoder, query_part, height, width, **options)
    labels = (query_part.ids, query_part.cameras, gallery_features, gallery.ids, gallery.cameras)
    scores = {"single": evaluate_retrieval(query_features, *labels, second_half_weight=weight)}
    if multi_query and dataset.multi_query is not None:
        extra = dataset.multi_query
        features = split_features(encoder, extra, height, width, **options)
        means = multi_query_features(features, extra.ids, extra.cameras, query_part.ids, query_part.cameras)
        scores["multi"] = evaluate_retrieval(means, *labels, second_half_weight=weight)
    return scores


class _LabelledSlice(_Slice):
    def __init__(self, split: Split, count: int) -> None:
        super().__init__(split, 0, count)
        self.ids, self.cameras = split.ids[:count], split.cameras[:count]


def score_pictures(
    model: DGNet, pictures: Tensor, pairs: np.ndarray, truth: Callable[[int, int], np.ndarray]
) -> dict[str, float]:
    """PSNR (dB) and SSIM of reconstructions and swaps.

    ``pictures`` uint8 (N, 3, H, W); ``pairs`` (M, 2) of (appearance i, structure j); ``truth(i, j)`` uint8
    (H, W, 3) is the true picture of that swap, which only drawn data has. As a measure of how much the swap
    changed, the score of simply returning picture j is given too (``copy_*``).
    """
    device = next(model.parameters()).device
    results: dict[str, list] = {"recon": [], "swap": [], "copy": []}
    for part in torch.from_numpy(pairs).split(32):
        appearance, structure = (normalize(pictures[part[:, k]].to(device)) for k in (0, 1))
        swapped = denormalize(model.swap(appearance, structure)).cpu()
        rebuilt = denormalize(model.swap(structure, structure)).cpu()
        target = torch.from_numpy(np.stack([truth(int(i), int(j)) for i, j in part])).permute(0, 3, 1, 2)
        original = pictures[part[:, 1]]
        for name, ours, wanted in (
            ("recon", rebuilt, original),
            ("swap", swapped, target),
            ("copy", original, target),
        ):
            results[name].append((psnr(ours, wanted), ssim(ours, wanted)))
    table = {}
    for name, rows in results.items():
        table[f"{name}_psnr"] = float(np.mean(np.concatenate([p for p, _ in rows])))
        table[f"{name}_ssim"] = float(np.mean(np.concatenate([s for _, s in rows])))
    return table


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
