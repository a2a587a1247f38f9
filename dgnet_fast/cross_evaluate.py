"""Score several checkpoints on several data sets, and print a table of sources and targets.

    dgnet-fast cross-evaluate runs/a runs/b --target market1501=DIR --target veri776=DIR

A target is NAME=DIR, with the name and the folder that --data and --root take elsewhere; `synthetic` has no DIR. The
checkpoints are those that dgnet-fast evaluate reads.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgnet_fast.cli.output import show_tables
from dgnet_fast.cli.parser import Parser, at_least, check_output, program, run_command
from dgnet_fast.cli.shared_options import (
    add_checkpoint,
    add_device,
    add_json,
    add_ranking_options,
    add_skip_unreadable,
    ranking_of,
)
from dgnet_fast.config import DATASETS, DRAWN, Config, ConfigError
from dgnet_fast.report.progress import progress

if TYPE_CHECKING:
    from dgnet_fast.data import ReidDataset
    from dgnet_fast.retrieval.scoring import Ranking

logger = logging.getLogger("dgnet_fast")  # __name__ is __main__ in a command


def parser() -> Parser:
    made = Parser(prog=program("cross_evaluate"), description=__doc__)
    add_checkpoint(made, nargs="+")
    made.add_argument(
        "--target", action="append", required=True, metavar="NAME=DIR",
        help=f"a data set to score on: one of {', '.join(DATASETS)}, and its folder; repeat the option for each data set",
    )  # fmt: skip
    made.add_argument(
        "--camera-pattern",
        metavar="RE",
        default="",
        help="regular expression that finds the camera in a file name (for 'folder' targets)",
    )
    add_skip_unreadable(made)
    add_ranking_options(made)
    made.add_argument("--max-queries", type=int, metavar="N", help="score only the first N queries")
    add_device(made)
    add_json(made)
    return made


def targets_of(words: list[str], camera_pattern: str, skip_unreadable: bool) -> dict[str, ReidDataset]:
    """The data sets of the NAME=DIR arguments, by the label of their column. All are opened before any other work."""
    from dgnet_fast.data.datasets import dataset_of
    from dgnet_fast.data.rules import check_scorable

    found: dict[str, ReidDataset] = {}
    for word in words:
        name, _, root = word.partition("=")
        if name not in DATASETS:
            raise ConfigError(f"--target is {word!r}; allowed: NAME=DIR, NAME one of {', '.join(DATASETS)}")
        if bool(root) == (name in DRAWN):
            raise ConfigError(f"--target is {word!r}; allowed: synthetic alone, or NAME=DIR")
        options = {"data": name, "data_root": root, "skip_unreadable": skip_unreadable}
        if name == "folder":
            options["camera_pattern"] = camera_pattern
        label = name if name not in found else word
        if label in found:
            raise ConfigError(f"--target {word} is given twice")
        found[label] = dataset_of(Config().replace(**options))
        try:
            check_scorable(found[label].query, found[label].gallery)
        except ValueError as error:
            raise ConfigError(f"--target {word}: {error}") from error
    return found


def source_label(path: Path, taken: dict[str, Any]) -> str:
    """A short name for the row of a checkpoint: the name of its run folder, or the whole path if that name is taken."""
    short = path.name if path.is_dir() else f"{path.parent.name}/{path.name}"
    return short if short and short not in taken else str(path)


def score_source(
    path: Path, targets: dict[str, ReidDataset], ranking: Ranking, args: Any
) -> dict[str, dict[str, Any]]:
    """The scores of one checkpoint on every target."""
    from dgnet_fast.checkpoints.loading import load_encoder
    from dgnet_fast.config.device import resolve_device
    from dgnet_fast.retrieval.extractor import Extractor
    from dgnet_fast.retrieval.scoring import ranking_for, score_retrieval

    encoder, config, known = load_encoder(path, config_file=args.config, allow_extra=args.allow_extra)
    extractor = Extractor.of(encoder.to(resolve_device(args.device)), config, batch=args.batch)
    scores = {}
    for label, dataset in targets.items():
        logger.info(f"{known['source']}, {known['step']} steps, on {label}")
        scores[label] = score_retrieval(
            extractor,
            dataset,
            ranking=ranking_for(extractor, ranking),
            max_queries=args.max_queries,
            progress=progress("features"),
        )
    return scores


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    from dgnet_fast.retrieval.tables import matrix

    for name in ("max_queries", "batch"):
        at_least(name, getattr(args, name), 1)
    ranking = ranking_of(args)
    from dgnet_fast.config.device import resolve_device

    resolve_device(args.device)
    check_output("--json", args.json)
    for source in args.checkpoint:
        if not source.exists():
            raise ConfigError(f"no such checkpoint: {source}")
    targets = targets_of(args.target, args.camera_pattern, args.skip_unreadable)
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for source in args.checkpoint:
        cells[source_label(source, cells)] = score_source(source, targets, ranking, args)
    names = [n for n in next(iter(next(iter(cells.values())).values())) if n != "single-shot"]
    tables = [matrix(cells, name.partition(", ")[2]) for name in names]
    if ranking.single_shot:
        tables.append(
            {
                "title": "Retrieval across data sets, single-gallery-shot",
                "columns": ["source", *(f"{label} Rank-1" for label in targets)],
                "rows": [
                    [source, *(round(100 * by_target[label]["single-shot"].rank[1], 2) for label in targets)]
                    for source, by_target in cells.items()
                ],
                "notes": [f"percent; mean over {ranking.single_shot} galleries of one picture an identity"],
            }
        )
    show_tables(tables, args.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("cross_evaluate"))


if __name__ == "__main__":
    sys.exit(main())
