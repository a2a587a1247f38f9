"""Checks of translated pictures that train no network on them: are they nearer to the target, does a classifier take them
for the target, and are people still who they were?
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.config import Config
from dgnet_fast.data import ChosenPictures, ReidDataset, Split, decode_split
from dgnet_fast.generation.score_networks import inception
from dgnet_fast.metrics import RetrievalScores, evaluate_retrieval
from dgnet_fast.metrics.generation import Features, frechet_distance, gaussian_of
from dgnet_fast.models.typed import in_channels_last
from dgnet_fast.models.unit import Unit
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.training.loop import StopSignal
from dgnet_fast.training.optim import Precision
from dgnet_fast.training.seeds import generators_kept
from dgnet_fast.translation.scores import translated as translate
from dgnet_fast.translation.transfer import train_baseline

MOST = 1000
"""Pictures of each data set that are compared."""


def colour_statistics(pictures: Tensor) -> Tensor:
    """float32 (N, 48): mean and standard deviation of each channel in 4×2 cells of uint8 pictures (N, 3, H, W)."""
    height, width = (size // n for size, n in zip(pictures.shape[2:], (4, 2), strict=True))
    cells = pictures[:, :, : 4 * height, : 2 * width].float().div(255)
    cells = cells.unfold(2, height, height).unfold(3, width, width).flatten(4)
    return torch.cat([cells.mean(dim=4), cells.std(dim=4)], dim=1).flatten(1)


def fit_classifier(features: Tensor, labels: Tensor, steps: int = 100) -> Callable[[Tensor], Tensor]:
    """Logistic regression (weight decay 1e-3, L-BFGS): a function from features (N, F) to classes (N,)."""
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    weight = torch.zeros(int(labels.max()) + 1, features.shape[1] + 1, requires_grad=True)

    def logits(x: Tensor) -> Tensor:
        x = (x - mean) / std
        return x @ weight[:, :-1].T + weight[:, -1]

    optimiser = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(features), labels) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return lambda x: logits(x).detach().argmax(dim=1)


def looks_like(pictures: Tensor, one: Tensor, other: Tensor) -> float:
    """Share of ``pictures`` that a classifier of `colour_statistics`, fitted to ``one`` (class 0) and ``other`` (class 1),
    takes for ``other``. All uint8 (N, 3, H, W).
    """
    features = [colour_statistics(x) for x in (one, other)]
    labels = torch.cat([torch.full((len(f),), k) for k, f in enumerate(features)])
    answer = fit_classifier(torch.cat(features), labels)(colour_statistics(pictures))
    return float((answer == 1).float().mean())


def distance(one: Tensor, other: Tensor, features: Features, batch: int = 64) -> float:
    """The Fréchet distance between two sets of pictures uint8 (N, 3, H, W); FID where ``features`` are Inception's."""
    return frechet_distance(*(gaussian_of(x.split(batch), features) for x in (one, other)))


def identity_kept(network: Extractor, dataset: ReidDataset, queries: Tensor) -> RetrievalScores:
    """Scores of the queries of ``dataset``, given as pictures uint8 (N, 3, H, W), in its gallery as it is."""
    asked, gallery = dataset.query, dataset.gallery
    features = network(queries)
    weight = 0.5 if network.encoder.style == "AB" else 1.0
    return evaluate_retrieval(
        features, asked.ids, asked.cameras, network.split(gallery), gallery.ids, gallery.cameras,
        second_half_weight=weight,
    )  # fmt: skip


def check_translation(
    model: Unit,
    config: Config,
    source: ReidDataset,
    target: ReidDataset,
    folder: Path,
    precision: Precision,
    stop: StopSignal,
    inception_file: Path | None = None,
    trusted: bool = False,
) -> dict[str, Any]:
    """`check_table` of the test pictures of ``source``, translated from the first to the second domain of ``model``. The frozen
    network that ranks them (and gives features without ``inception_file``) is a baseline trained on ``source``.
    ``trusted`` as in `inception`.
    """
    in_channels_last(model, precision.device)
    with generators_kept(precision.device):
        network = train_baseline(config, source, folder / "judge", precision, stop)
    judge = Extractor.of(network, config)
    size = model.config.picture_size
    pictures = [decode_split(spread(dataset.gallery), *size) for dataset in (source, target)]
    queries = decode_split(source.query, *size)
    return check_table(
        f"Translated test pictures of {source.name}, beside {target.name}",
        source=pictures[0],
        translated=translate(model, pictures[0], 0, 1),
        target=pictures[1],
        features=inception(inception_file, precision.device, trusted=trusted) if inception_file else judge,
        feature_name="FID (legacy)" if inception_file else "Fréchet distance over re-id features",
        ranks=(
            identity_kept(judge, source, queries),
            identity_kept(judge, source, translate(model, queries, 0, 1)),
        ),
    )


def spread(split: Split) -> Split:
    """At most `MOST` pictures of a split without its junk, in an order that mixes people."""
    kept = np.flatnonzero(split.ids >= 0)
    order = np.random.default_rng(0).permutation(kept)
    return ChosenPictures.of(split, order[:MOST])


def check_table(
    title: str,
    *,
    source: Tensor,
    translated: Tensor,
    target: Tensor,
    features: Features,
    feature_name: str,
    ranks: tuple[RetrievalScores, RetrievalScores] | None,
) -> dict[str, Any]:
    """The table of the checks: the source's pictures as they are beside the translated ones.

    ``ranks``: `identity_kept` of the queries as they are and translated. Half of the pictures of source and target fit the
    classifier, and the other halves are judged.
    """
    half, halfway = len(source) // 2, len(target) // 2
    fitted = source[:half], target[:halfway]
    rows: list[list[Any]] = [
        [
            f"{feature_name} to the target, less is nearer",
            round(distance(source, target, features), 3),
            round(distance(translated, target, features), 3),
            round(distance(target[:halfway], target[halfway:], features), 3),
        ],
        [
            "taken for the target by a classifier, percent",
            round(100 * looks_like(source[half:], *fitted), 1),
            round(100 * looks_like(translated[half:], *fitted), 1),
            round(100 * looks_like(target[halfway:], *fitted), 1),
        ],
    ]
    if ranks:
        values = [round(100 * one.rank[1], 1) for one in ranks]
        rows.append(["Rank-1 of the queries in their own gallery, percent", *values, None])
    return {
        "title": title,
        "columns": ["", "source as it is", "translated", "target"],
        "rows": rows,
        "notes": [
            f"{len(source)} pictures of the source and {len(target)} of the target; target: one half beside the other",
            "classifier: logistic regression of the mean and spread of each channel in 4×2 cells, on halves that are not judged",
        ],
    }
