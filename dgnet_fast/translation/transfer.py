"""What translated pictures are worth to re-identification: the baseline trained on real, translated or both pictures, and
tested on the other data set.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from dgnet_fast.config import Config
from dgnet_fast.data import ReidDataset, TrainBatches, cache_folder, load_pictures, place
from dgnet_fast.metrics import RetrievalScores
from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.report.files import read_checked, write_checked
from dgnet_fast.report.log import RunLog
from dgnet_fast.report.progress import progress
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.scoring import chance_scores, score_retrieval
from dgnet_fast.training.loop import StopSignal
from dgnet_fast.training.optim import Precision
from dgnet_fast.training.seeds import derive_seed, generators_kept
from dgnet_fast.training.teacher_loop import train_teacher

logger = logging.getLogger(__name__)

DIRECT = "direct transfer (source as it is)"
TRANSLATED = "translated source"
BOTH = "source and translated"
WITHIN = "target's own training set"
RANKS = (1, 5, 10)


def train_baseline(
    config: Config, dataset: ReidDataset, folder: Path, precision: Precision, stop: StopSignal
) -> AppearanceEncoder:
    """The baseline trained on ``dataset.train`` for ``teacher_steps`` steps; an interrupted training goes on."""
    pictures = load_pictures(
        dataset.train,
        *config.picture_size,
        cache_folder(config.data_cache),
        workers=config.num_workers or 1,
        progress=progress("decoding training pictures"),
    )
    batches = TrainBatches(
        place(pictures, precision.device, config.pictures_on),
        dataset.train_labels,
        batch_size=max(1, config.teacher_batch // 2),
        seed=derive_seed(config.seed, "transfer data"),
        pad=config.crop_pad,
        device=precision.device,
    )
    config = config.replace(ID_class=dataset.num_classes)
    every = max(1, config.teacher_steps // 5)
    with RunLog(folder, config.teacher_steps, every=every, tensorboard=False) as log:
        return train_teacher(config, batches, log, precision, state_file=folder / "state.pt", stop=stop)


def scores_of(network: AppearanceEncoder, config: Config, dataset: ReidDataset) -> RetrievalScores:
    """Single-query scores on the test people of a data set."""
    found = score_retrieval(Extractor.of(network, config), dataset)["single"]
    assert isinstance(found, RetrievalScores)
    return found


def run_transfer(
    config: Config,
    arms: dict[str, ReidDataset],
    target: ReidDataset,
    seeds: list[int],
    folder: Path,
    precision: Precision,
    stop: StopSignal,
) -> dict[str, dict[int, dict[str, float]]]:
    """The scores on ``target`` of baselines trained on every arm with every seed, in percent.

    What is finished is kept in ``folder/cells.json`` and not trained again. An arm has the same recipe, number of steps and
    seeds as all others.
    """
    path = folder / "cells.json"
    wanted = {
        "config": config.replace(seed=0).to_dict(),
        "arms": {name: [arm.name, len(arm.train)] for name, arm in arms.items()},
    }
    content: dict[str, Any] = {"what": wanted, "cells": {}}
    if path.is_file():
        content = read_cells(path)
        if content["what"] != json.loads(json.dumps(wanted)):
            raise ValueError(f"{folder} holds the scores of another comparison; choose another --out")
    cells: dict[str, dict[str, dict[str, float]]] = content["cells"]
    for seed in seeds:
        for name, arm in arms.items():
            if str(seed) in cells.get(name, {}):
                continue
            logger.info(f"seed {seed}: training on {name}, {len(arm.train)} pictures")
            place_ = folder / f"seed_{seed}_{list(arms).index(name)}"
            one = config.replace(seed=seed)
            with generators_kept(precision.device):
                network = train_baseline(one, arm, place_, precision, stop)
                found = scores_of(network, one, target)
            values = {f"Rank-{rank}": 100 * found.rank[rank] for rank in RANKS}
            cells.setdefault(name, {})[str(seed)] = values | {"mAP": 100 * found.mAP}
            write_checked(path, content)
    return {name: {int(seed): one for seed, one in by.items()} for name, by in cells.items()}


def read_cells(path: Path) -> dict[str, Any]:
    """The content of a ``cells.json``: what was compared, and {row: {seed: {score: percent}}}. ValueError where damaged."""
    remedy = "remove it, and the baselines are trained again"
    content = read_checked(path, ("what", "cells"), remedy)
    wanted = {f"Rank-{rank}" for rank in RANKS} | {"mAP"}
    try:
        for by_seed in content["cells"].values():
            for seed, scores in by_seed.items():
                if int(seed) < 0 or scores.keys() != wanted or not all(map(math.isfinite, scores.values())):
                    raise ValueError(seed)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged; {remedy}") from error
    return content


def transfer_table(
    cells: dict[str, dict[int, dict[str, float]]],
    source: str,
    target: ReidDataset,
    seeds: list[int],
    steps: int,
) -> dict[str, Any]:
    """Mean and standard deviation over seeds, direct transfer first, and what each arm changes against it."""
    names = [f"Rank-{rank}" for rank in RANKS] + ["mAP"]
    chance = chance_scores(target)
    rows: list[list[Any]] = [
        ["chance", *(f"{100 * chance.rank[r]:.1f}" for r in RANKS), f"{100 * chance.mAP:.1f}", ""]
    ]
    for arm, by_seed in cells.items():
        values = {name: np.array([by_seed[seed][name] for seed in seeds]) for name in names}
        direct = np.array([cells[DIRECT][seed]["mAP"] for seed in seeds])
        change = values["mAP"] - direct
        shown = [f"{one.mean():.1f} ± {one.std(ddof=min(1, len(seeds) - 1)):.1f}" for one in values.values()]
        rows.append(
            [
                arm,
                *shown,
                "" if arm == DIRECT else f"{change.mean():+.1f} ({', '.join(f'{c:+.1f}' for c in change)})",
            ]
        )
    return {
        "title": f"Transfer from {source} to {target.name}",
        "columns": ["trained on", *names, "mAP against direct transfer (each seed)"],
        "rows": rows,
        "notes": [
            f"percent on the query and gallery of {target.name}, single query; mean ± standard deviation over seeds "
            f"{', '.join(map(str, seeds))}; {steps} steps of the baseline in every row",
        ],
    }
