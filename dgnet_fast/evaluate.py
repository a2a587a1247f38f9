"""Score a checkpoint: CMC, mAP in both conventions, mINP; multi-query where the data has it.

    python -m dgnet_fast.evaluate RUN                                          a run folder or a step_*.pt of ours
    python -m dgnet_fast.evaluate id_00100000.pt --config config.yaml --data market1501 --root DIR   a public checkpoint

The data is the one that the checkpoint was trained on unless --data and --root name another. --rerank and --aqe add rows,
--single-shot a table, --rank-list a picture of rankings. Many checkpoints on many data sets: dgnet_fast.cross_evaluate.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dgnet_fast.cli import Parser, chunks_progress, run_command
from dgnet_fast.config import DATASETS, ConfigError
from dgnet_fast.data import cache_folder
from dgnet_fast.evaluation import Ranking, rank_list_rows, ranking_for, retrieval_sets, score_sets
from dgnet_fast.extras import need
from dgnet_fast.metrics import RetrievalScores, SingleShotScores
from dgnet_fast.report.rank_list import rank_list
from dgnet_fast.training.checkpoint import load_for_use
from dgnet_fast.training.run import dataset_of, print_tables, resolve_device


def parser() -> Parser:
    made = Parser(prog="python -m dgnet_fast.evaluate", description=__doc__)
    made.add_argument(
        "checkpoint", type=Path, help="run folder, step_*.pt, or a public id_*.pt or its folder"
    )
    made.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options of a public checkpoint (default: config.yaml near it)",
    )
    made.add_argument("--data", help=f"data set: {', '.join(DATASETS)} (default: the checkpoint's)")
    made.add_argument("--root", help="folder of the data set (csv: the file)")
    made.add_argument(
        "--camera-pattern", help="regular expression that finds the camera in a file name (folder data)"
    )
    made.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out pictures that cannot be read, and count them",
    )
    add_ranking_options(made)
    made.add_argument(
        "--rank-list", type=Path, metavar="FILE", help="write a picture of the first ranks of some queries"
    )
    made.add_argument(
        "--rank-list-queries", type=int, default=8, metavar="N", help="queries in that picture (default 8)"
    )
    made.add_argument(
        "--multi-query",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also score multi-query where the data has it",
    )
    made.add_argument("--max-queries", type=int, metavar="N", help="score the first N queries only")
    made.add_argument("--batch", type=int, default=64, metavar="N", help="pictures per pass (default 64)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument(
        "--data-cache",
        metavar="DIR",
        help="folder that keeps decoded pictures, or off (default: the checkpoint's)",
    )
    made.add_argument(
        "--allow-extra", action="store_true", help="let extra entries of a public checkpoint through"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the scores to this file")
    return made


def add_ranking_options(made: Parser) -> None:
    """What `ranking_of` reads."""
    made.add_argument(
        "--second-half-weight",
        default="0.5",
        metavar="X",
        help="weight of the fine-grained half of the query's feature: a number, or 'only' for that half alone (default 0.5)",
    )
    made.add_argument("--rerank", action="store_true", help="also score k-reciprocal re-ranking")
    made.add_argument(
        "--k1", type=int, default=20, metavar="N", help="re-ranking: reciprocal neighbours (default 20)"
    )
    made.add_argument(
        "--k2", type=int, default=6, metavar="N", help="re-ranking: averaged neighbours (default 6)"
    )
    made.add_argument(
        "--lambda", dest="original_weight", type=float, default=0.3, metavar="X",
        help="re-ranking: share of the original distance (default 0.3)",
    )  # fmt: skip
    made.add_argument("--aqe", action="store_true", help="also score alpha query expansion")
    made.add_argument(
        "--aqe-neighbours", type=int, default=10, metavar="N", help="expansion: neighbours (default 10)"
    )
    made.add_argument(
        "--aqe-alpha", type=float, default=3.0, metavar="X", help="expansion: power of the cosine (default 3)"
    )
    made.add_argument(
        "--single-shot", action="store_true",
        help="also score CUHK03's first protocol: one gallery picture an identity, drawn again and again",
    )  # fmt: skip
    made.add_argument("--repeats", type=int, default=100, metavar="N", help="single-shot draws (default 100)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="seed of those draws (default 0)")


def ranking_of(args: argparse.Namespace) -> Ranking:
    """The ranking that the options of `add_ranking_options` describe."""
    for name in ("k1", "k2", "aqe_neighbours", "repeats"):
        at_least(name, getattr(args, name), 1)
    for name in ("aqe_alpha", "seed"):
        at_least(name, getattr(args, name), 0)
    if args.rerank:
        need("scipy", "rerank", "--rerank")
    if not 0 <= args.original_weight <= 1:
        raise ConfigError(f"--lambda is {args.original_weight}; allowed: 0 to 1")
    return Ranking(
        weight=weight_of(args.second_half_weight),
        expand=args.aqe,
        neighbours=args.aqe_neighbours,
        alpha=args.aqe_alpha,
        rerank=args.rerank,
        k1=args.k1,
        k2=args.k2,
        original_weight=args.original_weight,
        single_shot=args.repeats if args.single_shot else 0,
        seed=args.seed,
    )


def at_least(name: str, value: float | None, low: int) -> None:
    """Refuse an option's value below ``low``; None is one not given."""
    if value is not None and not value >= low:
        raise ConfigError(f"--{name.replace('_', '-')} is {value}; allowed: at least {low}")


def weight_of(text: str) -> float | None:
    """The --second-half-weight argument."""
    if text == "only":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"--second-half-weight is {text!r}; allowed: a number of at least 0, or 'only'")
    return value


def table(scores: dict[str, RetrievalScores]) -> dict:
    """The scores as a result table, in percent."""
    rows = []
    for name, one in scores.items():
        kind, *how = name.split(", ")
        values = [*one.rank.values(), one.mAP, one.mINP, *one.rank_all.values(), one.mAP_trapezoid]
        rows.append([", ".join([f"{kind} query", *how]), *(round(100 * v, 2) for v in values)])
    first = next(iter(scores.values()))
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


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    for name in ("max_queries", "batch", "rank_list_queries"):
        at_least(name, getattr(args, name), 1)
    ranking = ranking_of(args)
    device = resolve_device(args.device)
    model, known = load_for_use(args.checkpoint, config_file=args.config, allow_extra=args.allow_extra)
    changes = {"data": args.data, "data_root": args.root, "camera_pattern": args.camera_pattern}
    changes["data_cache"] = args.data_cache
    config = model.config.replace(
        **{k: v for k, v in changes.items() if v is not None}, skip_unreadable=args.skip_unreadable
    )
    dataset = dataset_of(config)
    print(f"{known['source']}, {known['step']} steps, on {dataset.name}", file=sys.stderr)
    ranking = ranking_for(model.appearance_encoder, ranking)
    sets = retrieval_sets(
        model.appearance_encoder.to(device),
        dataset,
        config.crop_image_height,
        config.crop_image_width,
        multi_query=args.multi_query,
        max_queries=args.max_queries,
        batch=args.batch,
        upsample=config.ID_upsample,
        workers=config.num_workers or 1,
        cache=cache_folder(config.data_cache),
        progress=chunks_progress("features"),
    )
    scores = score_sets(sets, ranking)
    single_shot = scores.pop("single-shot", None)
    tables = [table(scores)] + ([single_shot_table(single_shot)] if single_shot else [])
    print_tables(tables)
    if args.json:
        args.json.write_text(json.dumps(tables if single_shot else tables[0], indent=1))
    if args.rank_list:
        rows = rank_list_rows(sets, dataset, ranking, queries=args.rank_list_queries)
        rank_list(rows).save(args.rank_list, format="PNG")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), "python -m dgnet_fast.evaluate")


if __name__ == "__main__":
    sys.exit(main())
