"""What a finished run shows: its tables, the rank lists of some queries, and the scores for each camera."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgnet_fast.config import Config
from dgnet_fast.data import ReidDataset
from dgnet_fast.data.drawn.dataset import SyntheticSplit
from dgnet_fast.distributed import processes
from dgnet_fast.generation.scores import picture_table
from dgnet_fast.metrics import RetrievalScores
from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.files import atomically, write_json
from dgnet_fast.report.rank_list import rank_list
from dgnet_fast.report.tables import TABLES
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.scoring import (
    Ranking,
    chance_scores,
    rank_list_rows,
    ranking_for,
    retrieval_sets,
    score_retrieval,
    score_sets,
)
from dgnet_fast.retrieval.tables import camera_table, retrieval_table, verdict
from dgnet_fast.training.checks import (
    baseline_batch,
    baseline_steps,
    encoder_pictures,
    joint_pictures,
    teacher_steps,
)

BASELINE = "baseline, trained as long"
"""Name of the row of the baseline that has as many training steps as DG-Net, which a fair comparison needs."""
OURS = "DG-Net"
RANK_LIST_QUERIES = 6


def scores_of(
    networks: Mapping[str, AppearanceEncoder], config: Config, dataset: ReidDataset
) -> dict[str, RetrievalScores]:
    """Single-query scores of several encoders on the test people."""
    found = {}
    for name, network in networks.items():
        one = score_retrieval(Extractor.of(network, config), dataset)["single"]
        assert isinstance(one, RetrievalScores)
        found[name] = one
    return found


def named_teachers(teachers: list[AppearanceEncoder]) -> dict[str, AppearanceEncoder]:
    """The teachers, by the names of their rows."""
    if len(teachers) == 1:
        return {"teacher (baseline)": teachers[0]}
    return {f"teacher {k + 1}": teacher for k, teacher in enumerate(teachers)}


def real_pictures(config: Config, count: int) -> str:
    """How many real pictures E_a and the baseline learn from, of ``count`` training pictures: a comparison by steps leaves it
    open.
    """
    steps, batch = baseline_steps(config), baseline_batch(config, count)
    parts = [
        f"{number} steps of {size}{of}"
        for number, size, of in (
            (teacher_steps(config), config.teacher_batch, " as its teacher"),
            (config.max_iter, joint_pictures(config), ""),
        )
        if number
    ]
    where = " in each process" if processes.size() > 1 else ""
    return (
        f"real pictures{where}: E_a learns from {encoder_pictures(config)} ({', '.join(parts)}), "
        f"the baseline from {steps * batch} ({steps} steps of {batch})"
    )


def final_tables(
    config: Config,
    dataset: ReidDataset,
    model: DGNet,
    networks: Mapping[str, AppearanceEncoder],
    folder: Path,
) -> list[dict[str, Any]]:
    """The tables of results: the retrieval scores of chance, of ``networks`` (by name) and of DG-Net; and, for synthetic
    data, the pictures compared with the truth. Each has a verdict in words. Rank lists and the scores for each camera
    go to ``folder/visual``.
    """
    scores = {"chance": chance_scores(dataset)} | scores_of(networks, config, dataset)
    scores[OURS] = _score_and_draw(config, dataset, model.appearance_encoder, folder / "visual")
    retrieval = retrieval_table(dataset, scores)
    rivals = [name for name in scores if name != OURS]
    rival = next((name for name in rivals if name.startswith(BASELINE)), rivals[-1])
    if rival.startswith(BASELINE):
        retrieval["notes"].append(real_pictures(config, len(dataset.train)))
    retrieval["verdict"] = verdict(dataset, OURS, scores[OURS], rival, scores[rival])
    tables = [retrieval]
    if config.data == "synthetic" and processes.is_first():
        gallery = dataset.gallery
        assert isinstance(gallery, SyntheticSplit)  # as the data set "synthetic" has
        tables.append(picture_table(model, gallery))
    return tables


def _score_and_draw(
    config: Config, dataset: ReidDataset, encoder: AppearanceEncoder, folder: Path
) -> RetrievalScores:
    """The single-query scores, with rank_list.png and cameras.json of the same features in ``folder``."""
    extractor = Extractor.of(encoder, config)
    ranking = ranking_for(extractor, Ranking())
    sets = retrieval_sets(extractor, dataset)
    scores = score_sets(sets, ranking)["single"]
    assert isinstance(scores, RetrievalScores)
    if not processes.is_first():
        return scores
    rows = rank_list_rows(sets, dataset, ranking, queries=RANK_LIST_QUERIES)
    with atomically(folder / "rank_list.png", sync=False) as temporary:
        rank_list(rows).save(temporary, format="PNG")
    cameras = camera_table(dataset, sets["single"].features, sets["gallery"].features, ranking.weight)
    write_json(folder / "cameras.json", {TABLES: [cameras]})
    return scores
