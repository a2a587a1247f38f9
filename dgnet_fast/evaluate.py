"""Score a checkpoint: CMC, mAP in both conventions, mINP, and multi-query if the data set has it.

    dgnet-fast evaluate RUN                                          a run folder, or one of its checkpoints
    dgnet-fast evaluate id_00100000.pt --config config.yaml --data market1501 --root DIR   a public checkpoint

The data set is the one that the checkpoint was trained on, unless --data and --root name another. --rerank and --aqe
add rows, --single-shot adds a table, --roc scores verification, and --rank-list writes a picture of rank lists. A run folder stands for its
newest checkpoint; its checkpoints/best.pt (see --eval-iter of training) was selected on the test people. To score
several checkpoints on several data sets, use dgnet_fast.cross_evaluate.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from dgnet_fast.cli.callable import callable_module
from dgnet_fast.cli.output import show_tables
from dgnet_fast.cli.parser import Parser, at_least, check_output, check_png, program, run_command
from dgnet_fast.cli.shared_options import (
    add_checkpoint,
    add_data_set,
    add_device,
    add_json,
    add_ranking_options,
    data_set_config,
    ranking_of,
)
from dgnet_fast.report.files import atomically
from dgnet_fast.report.progress import progress

logger = logging.getLogger("dgnet_fast")  # __name__ is __main__ in a command


def parser() -> Parser:
    made = Parser(prog=program("evaluate"), description=__doc__)
    add_checkpoint(made)
    add_data_set(made)
    add_ranking_options(made)
    made.add_argument(
        "--rank-list",
        type=Path,
        metavar="FILE",
        help="write a picture (.png) with the rank lists of some queries",
    )
    made.add_argument(
        "--roc",
        type=Path,
        metavar="FILE",
        help="also score verification (FAR, EER, AUC), and draw the ROC curve as a picture (.png)",
    )
    made.add_argument(
        "--rank-list-queries",
        type=int,
        default=8,
        metavar="N",
        help="number of queries in that picture (default 8)",
    )
    made.add_argument(
        "--multi-query",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also score multi-query if the data set has it",
    )
    made.add_argument("--max-queries", type=int, metavar="N", help="score only the first N queries")
    add_device(made)
    made.add_argument(
        "--data-cache",
        metavar="DIR",
        help="folder of the cache of decoded pictures, or off (default: the one of the checkpoint)",
    )
    add_json(made)
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    from dgnet_fast.checkpoints.loading import load_encoder
    from dgnet_fast.config.device import resolve_device
    from dgnet_fast.data.datasets import dataset_of
    from dgnet_fast.distributed.processes import is_first
    from dgnet_fast.metrics import RetrievalScores, SingleShotScores
    from dgnet_fast.report.rank_list import rank_list
    from dgnet_fast.report.roc import save_roc
    from dgnet_fast.retrieval.extractor import Extractor
    from dgnet_fast.retrieval.scoring import rank_list_rows, ranking_for, retrieval_sets, score_sets, verify
    from dgnet_fast.retrieval.tables import single_shot_table, table, verification_table

    for name in ("max_queries", "batch", "rank_list_queries"):
        at_least(name, getattr(args, name), 1)
    ranking = ranking_of(args)
    device = resolve_device(args.device)
    check_output("--json", args.json)
    for option, path in (("--roc", args.roc), ("--rank-list", args.rank_list)):
        check_png(option, path)
    encoder, config, known = load_encoder(
        args.checkpoint, config_file=args.config, allow_extra=args.allow_extra
    )
    config = data_set_config(config, args, data_cache=args.data_cache)
    dataset = dataset_of(config)
    logger.info(f"{known['source']}, {known['step']} steps, on {dataset.name}")
    extractor = Extractor.of(encoder.to(device), config, batch=args.batch)
    ranking = ranking_for(extractor, ranking)
    sets = retrieval_sets(
        extractor,
        dataset,
        multi_query=args.multi_query,
        max_queries=args.max_queries,
        progress=progress("features"),
    )
    if not is_first():
        return 0
    scores = score_sets(sets, ranking)
    tables = [table({name: one for name, one in scores.items() if isinstance(one, RetrievalScores)})]
    tables += [single_shot_table(one) for one in scores.values() if isinstance(one, SingleShotScores)]
    if args.multi_query and dataset.multi_query is not None and "multi" not in sets:
        tables[0]["rows"].append(["multi query", *[None] * (len(tables[0]["columns"]) - 1)])
        tables[0]["notes"].append("multi query: not scored, its set lacks some queries' identity and camera")
    verified = verify(sets["single"], sets["gallery"], ranking) if args.roc else None
    if verified is not None:
        tables.append(verification_table(verified))
        save_roc({"single query": (verified.far, verified.true_accept)}, args.roc)
    if args.rank_list:
        rows = rank_list_rows(sets, dataset, ranking, queries=args.rank_list_queries)
        with atomically(args.rank_list) as temporary:
            rank_list(rows).save(temporary, format="PNG")
    show_tables(tables, args.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("evaluate"), together=True)


callable_module(__name__, "dgnet_fast.retrieval.evaluation:evaluate")

if __name__ == "__main__":
    sys.exit(main())
