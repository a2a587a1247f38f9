"""Score a checkpoint: CMC, mAP in both conventions, mINP; multi-query where the data has it.

    python -m dgnet_fast.evaluate RUN                                          a run folder or a step_*.pt of ours
    python -m dgnet_fast.evaluate id_00100000.pt --config config.yaml --data market1501 --root DIR   a public checkpoint

The data is the one that the checkpoint was trained on unless --data and --root name another.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dgnet_fast.cli import Parser, chunks_progress, run_command
from dgnet_fast.config import ConfigError
from dgnet_fast.evaluation import score_retrieval
from dgnet_fast.metrics import RetrievalScores
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
    made.add_argument("--data", help="data set: synthetic, market1501, folder (default: the checkpoint's)")
    made.add_argument("--root", help="folder of the data set")
    made.add_argument(
        "--camera-pattern", help="regular expression that finds the camera in a file name (folder data)"
    )
    made.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out pictures that cannot be read, and count them",
    )
    made.add_argument(
        "--second-half-weight",
        default="0.5",
        metavar="X",
        help="weight of the fine-grained half of the query's feature: a number, or 'only' for that half alone (default 0.5)",
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
        "--allow-extra", action="store_true", help="let extra entries of a public checkpoint through"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the scores to this file")
    return made


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
        values = [*one.rank.values(), one.mAP, one.mINP, *one.rank_all.values(), one.mAP_trapezoid]
        rows.append([f"{name} query", *(round(100 * v, 2) for v in values)])
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


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    for name in ("max_queries", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; allowed: at least 1")
    weight = weight_of(args.second_half_weight)
    device = resolve_device(args.device)
    model, known = load_for_use(args.checkpoint, config_file=args.config, allow_extra=args.allow_extra)
    changes = {"data": args.data, "data_root": args.root, "camera_pattern": args.camera_pattern}
    config = model.config.replace(
        **{k: v for k, v in changes.items() if v is not None}, skip_unreadable=args.skip_unreadable
    )
    dataset = dataset_of(config)
    print(f"{known['source']}, {known['step']} steps, on {dataset.name}", file=sys.stderr)
    scores = score_retrieval(
        model.appearance_encoder.to(device),
        dataset,
        config.crop_image_height,
        config.crop_image_width,
        weight=weight,
        multi_query=args.multi_query,
        max_queries=args.max_queries,
        batch=args.batch,
        upsample=config.ID_upsample,
        workers=config.num_workers or 1,
        progress=chunks_progress("features"),
    )
    result = table(scores)
    print_tables([result])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), "python -m dgnet_fast.evaluate")


if __name__ == "__main__":
    sys.exit(main())
