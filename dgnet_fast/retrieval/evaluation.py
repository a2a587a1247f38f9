"""Scores of a checkpoint on a data set, in one call."""

from __future__ import annotations

from pathlib import Path

from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.config.device import resolve_device
from dgnet_fast.data import ReidDataset
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.metrics import RetrievalScores, SingleShotScores
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.scoring import Ranking, ranking_for, retrieval_sets, score_sets


def evaluate(
    checkpoint: str | Path,
    data: str | ReidDataset | None = None,
    root: str | None = None,
    *,
    ranking: Ranking | None = None,
    multi_query: bool = True,
    max_queries: int | None = None,
    device: str = "auto",
    batch: int = 64,
    config_file: str | Path | None = None,
    allow_extra: bool = False,
) -> dict[str, RetrievalScores | SingleShotScores]:
    """Score a checkpoint, as `dgnet-fast evaluate` does.

    Args:
        checkpoint: a run folder, one of its checkpoints, a .safetensors file, or public files.
        data: name of a data set, or one that `load_dataset` has loaded (default: the one of the checkpoint).
        root: folder of the data set, if ``data`` is a name.
        ranking: what is scored in addition to the plain ranking; see `dgnet_fast.retrieval.scoring.Ranking`.
        multi_query: also score multi-query if the data set has it.
        max_queries: score only the first queries.
        device: auto, cpu, cuda or cuda:N.
        batch: number of pictures in one pass.
        config_file, allow_extra: as in `dgnet_fast.checkpoints.loading.load_for_use`, for public checkpoints.

    Returns:
        Scores in 0..1 by name: 'single' (one query picture), 'multi' (multi-query) if the data set has it, and their variants.

    Raises:
        ValueError: the checkpoint or the data set cannot be read, or no query has a match.

    Example:
        >>> import dgnet_fast
        >>> scores = dgnet_fast.evaluate("runs/a", device="cpu")
        >>> sorted(scores)
        ['multi', 'single']
        >>> 0 <= scores["single"].mAP <= 1 and scores["single"].num_valid > 0
        True
    """
    where = resolve_device(device)
    model, _ = load_for_use(checkpoint, config_file=config_file, allow_extra=allow_extra)
    config = model.config
    if isinstance(data, str) or root is not None:
        changes = {"data": data, "data_root": root}
        config = config.replace(**{name: value for name, value in changes.items() if value is not None})
    dataset = data if isinstance(data, ReidDataset) else dataset_of(config)
    extractor = Extractor.of(model.appearance_encoder.to(where), config, batch=batch)
    sets = retrieval_sets(extractor, dataset, multi_query=multi_query, max_queries=max_queries)
    return score_sets(sets, ranking_for(extractor, ranking or Ranking()))
