"""Reproduce a table of the paper over several seeds: the mean and the standard deviation of every cell, with a
baseline that is trained for as many steps.

    dgnet-fast reproduce ablation --out runs/ablation  synthetic pedestrians, three seeds
    dgnet-fast reproduce ablation --data market1501 --root DIR --pretrained resnet50.pth --out runs/market

The table "ablation" shows what the primary and the fine-grained feature add (Table 4 of the paper). Each seed is a
complete run in its own folder below --out: the teacher, DG-Net, and the baseline. With --control each seed has a second
run from the same teacher, and the same first phase of E_s and G, in which E_a does not learn from generated pictures
(train_on_generated false): what remains of DG-Net's gain there does not come from them. If the command is interrupted, run it
again: finished seeds are read from their folders, and the interrupted one is resumed. It writes ablation.md and
ablation.json. All other options are those of dgnet_fast.train.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgnet_fast.cli.config_options import add_config_options, config_from
from dgnet_fast.cli.output import print_tables, write_tables
from dgnet_fast.cli.parser import Parser, at_least, program, run_command
from dgnet_fast.config import Config, ConfigError, differing, from_dict
from dgnet_fast.config.places import with_absolute_paths
from dgnet_fast.report.files import atomically, check_writable, read_checked, write_checked, write_text
from dgnet_fast.report.tables import markdown_table

logger = logging.getLogger("dgnet_fast")

FEATURES = {"+ primary (f_prim)": 0.0, "+ fine-grained (f_fine)": None, "both": 0.5}
"""The rows of the paper, and for each the weight of the second half of the query's feature (None: only the second
half).
"""
TEACHER = "teacher"
SCORES = ("Rank-1", "mAP", "mINP")
CONTROL = "without learning from generated pictures"
UNTAUGHT = {"train_on_generated": False, "baseline": False}
"""The options of the control that differ from those of the run itself."""
CELLS = "cells.json"
"""Name of the file with the scores of a finished seed, in its folder."""


def parser() -> Parser:
    made = Parser(prog=program("reproduce"), description=__doc__)
    made.add_argument("table", choices=("ablation",), help="table to make")
    made.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the runs and of the table"
    )
    made.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="number of runs; their seeds are 0 to N-1 (default 3)",
    )
    made.add_argument(
        "--control",
        action="store_true",
        help="also train each seed without learning from generated pictures, from the same teacher",
    )
    add_config_options(made)
    return made


def score_run(folder: Path) -> dict[str, list[float]]:
    """Rank-1, mAP and mINP (percent) of the rows of a finished run: the teacher, the baseline and `FEATURES`."""
    from dgnet_fast.checkpoints.loading import load_for_use
    from dgnet_fast.checkpoints.teachers import load_teachers
    from dgnet_fast.config.device import resolve_device
    from dgnet_fast.data.datasets import dataset_of
    from dgnet_fast.retrieval.extractor import Extractor
    from dgnet_fast.retrieval.scoring import Ranking, retrieval_sets, score_features
    from dgnet_fast.training.results import BASELINE

    model, _ = load_for_use(folder)
    config, device = model.config, resolve_device(model.config.device)
    dataset = dataset_of(config)
    networks = {TEACHER: folder / "teacher.pt", BASELINE: folder / "baseline.pt"}
    rows: dict[str, list[float]] = {}

    def add(name: str, extractor: Extractor, weights: Mapping[str, float | None]) -> None:
        sets = retrieval_sets(extractor, dataset)
        for row, weight in weights.items():
            one = score_features(sets["single"], sets["gallery"], Ranking(weight=weight))[""]
            rows[row or name] = [100 * one.rank[1], 100 * one.mAP, 100 * one.mINP]

    for name, file in networks.items():
        if file.is_file():
            (network,) = load_teachers(config.replace(teacher=str(file)), dataset.class_names)
            add(name, Extractor.of(network.to(device), config), {"": 1.0})
    halves = FEATURES if config.ID_style == "AB" else {"DG-Net": 1.0}
    add("DG-Net", Extractor.of(model.appearance_encoder.to(device), config), halves)
    return rows


def seed_cells(config: Config, folder: Path) -> dict[str, list[float]]:
    """The rows of one seed. If they are not finished, the run is trained or resumed first."""
    from dgnet_fast.checkpoints.runs import saved_options
    from dgnet_fast.training.run import run_training

    if (folder / CELLS).is_file():
        remedy = "remove it, and the run is scored again"
        content = read_checked(folder / CELLS, ("rows",), remedy)
        try:
            return {name: [float(value) for value in cells] for name, cells in content["rows"].items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / CELLS} is damaged; {remedy}") from error
    resume = (folder / "config.yaml").is_file()
    if resume:
        there = from_dict(saved_options(folder)).replace(ID_class=0)
        here = with_absolute_paths(config.replace(ID_class=0))
        if (wrong := differing(with_absolute_paths(there), here)) is not None:
            raise ConfigError(f"{folder} holds a run with {wrong}; choose another --out")
    run_training(config, folder, resume=resume)
    rows = score_run(folder)
    write_checked(folder / CELLS, {"rows": rows})
    return rows


def control_cells(config: Config, folder: Path) -> dict[str, list[float]]:
    """The rows of DG-Net of the control of the finished run of ``config`` in ``folder``; it lies in ``folder/control``."""
    from dgnet_fast.training.generator_loop import GENERATOR
    from dgnet_fast.training.run import TEACHER as TEACHER_FILE

    own = folder / "control"
    own.mkdir(exist_ok=True)
    for name in (TEACHER_FILE, GENERATOR):
        if (folder / name).is_file() and not (own / name).is_file():
            with atomically(own / name) as temporary:
                shutil.copyfile(folder / name, temporary)
    rows = seed_cells(config.replace(**UNTAUGHT), own)
    return {f"{CONTROL}: {name}": cells for name, cells in rows.items() if name != TEACHER}


def cell(values: list[float]) -> str:
    """The mean ± standard deviation over seeds with one decimal; for a single seed the value alone."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def compared(gains: list[float], other: str) -> str:
    """In words, whether gains in points of mAP over ``other``, one for each seed, are more than noise."""
    mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    word = "within noise of" if abs(mean) <= 2 * error else "better than" if mean > 0 else "worse than"
    return f"{word} {other}, {mean:+.1f} ± {error:.1f} points of mAP (paired by seed, standard error)"


def ablation_table(seeds: list[dict[str, list[float]]], config: Config, count: int) -> dict[str, Any]:
    """The table over the finished seeds, with a note that compares DG-Net with the baseline in words. ``count``: training
    pictures of the data set.
    """
    from dgnet_fast.training.results import BASELINE, real_pictures

    rows = []
    for name in seeds[0]:
        columns = zip(*(one[name] for one in seeds), strict=True)
        rows.append([name, *(cell(list(values)) for values in columns)])
    notes = [
        f"percent, {len(seeds)} seed{'s' * (len(seeds) > 1)}, mean ± standard deviation over seeds; single query",
        f"{config.data}, {config.crop_image_height}x{config.crop_image_width}; teacher {config.teacher_steps} steps, DG-Net "
        f"{config.max_iter} more; the baseline trained as long has {config.teacher_steps + config.max_iter} steps of its own schedule",
    ]
    if BASELINE in seeds[0]:
        notes.append(real_pictures(config, count))
    last = next(name for name in reversed(seeds[0]) if not name.startswith(CONTROL))
    for other, words in (
        (BASELINE, "the baseline trained as long"),
        (f"{CONTROL}: {last}", f"itself {CONTROL}"),
    ):
        if other in seeds[0] and len(seeds) > 1:
            notes.append(f"{last}: {compared([one[last][1] - one[other][1] for one in seeds], words)}")
    return {"title": f"Ablation ({config.data})", "columns": ["", *SCORES], "rows": rows, "notes": notes}


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    from dgnet_fast.data.datasets import dataset_of
    from dgnet_fast.training.loop import Diverged, Stopped

    at_least("seeds", args.seeds, 1)
    config, _ = config_from(args)
    if config.teacher == "":
        raise ConfigError("teacher is ''; the ablation compares with the teacher: allowed: auto, or a file")
    if not config.baseline:
        raise ConfigError("baseline is False; the ablation needs the baseline that is trained as long")
    check_writable(args.out / "ablation.json", "--out")
    found: list[dict[str, list[float]]] = []
    table: dict[str, Any] = {}
    count = 0
    for seed in range(args.seeds):
        logger.info(f"seed {seed} ({seed + 1} of {args.seeds})")
        try:
            one, folder = config.replace(seed=seed), args.out / f"seed_{seed}"
            found.append(seed_cells(one, folder) | (control_cells(one, folder) if args.control else {}))
        except Stopped as stopped:
            print(f"stopped after step {stopped.step} of seed {seed}, saved; the same command goes on")
            return 128 + stopped.signal
        except Diverged as error:
            raise ValueError(f"seed {seed}: {error}") from error
        count = count or len(
            dataset_of(config).train
        )  # reads the whole set where damaged pictures are left out
        table = ablation_table(found, config, count)
        write_tables(args.out / "ablation.json", [table])
        write_text(args.out / "ablation.md", markdown_table(table))
    print_tables([table])
    print(args.out / "ablation.md")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("reproduce"))


if __name__ == "__main__":
    sys.exit(main())
