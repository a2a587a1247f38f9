"""Groups of options that several commands have, and what these options describe: the extractor of a checkpoint, a
ranking, or the pictures of a source.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgnet_fast.cli.output import STANDARD_OUTPUT
from dgnet_fast.cli.parser import Parser, at_least
from dgnet_fast.config import DATASETS, Config, ConfigError

if TYPE_CHECKING:
    from dgnet_fast.retrieval.extractor import Extractor
    from dgnet_fast.retrieval.scoring import Ranking

logger = logging.getLogger(__name__)


def add_checkpoint(made: Parser, *, nargs: str | None = None) -> None:
    """Add the checkpoint as an argument (``nargs``: optional, or several), and the options that a public one needs."""
    made.add_argument(
        "checkpoint",
        nargs=nargs,
        type=Path,
        metavar="RUN",
        help="run folder, step_*.pt, *.safetensors, or a public id_*.pt or its folder",
    )
    add_checkpoint_details(made)


def add_checkpoint_details(made: Parser) -> None:
    """Add the options that a public checkpoint needs besides its path."""
    made.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file with the options of a public checkpoint (default: config.yaml in its folder or the one above)",
    )
    made.add_argument(
        "--allow-extra",
        action="store_true",
        help="accept additional entries of a public checkpoint that no network uses",
    )


def add_device(made: Parser, *, batch: int | None = 64) -> None:
    """Add --device and --batch, the number of pictures in one pass (None: without --batch)."""
    made.add_argument(
        "--device", default="auto", metavar="DEVICE", help="device: auto, cpu, cuda or cuda:N (default auto)"
    )
    if batch is not None:
        made.add_argument(
            "--batch",
            type=int,
            default=batch,
            metavar="N",
            help=f"number of pictures in one pass (default {batch})",
        )


def add_source_details(made: Parser) -> None:
    """Add the options that `source_config` reads: where the data sets of the sources are."""
    made.add_argument(
        "--root",
        metavar="DIR",
        help="folder of the data set that a source names (default: the one of the checkpoint)",
    )
    made.add_argument(
        "--camera-pattern",
        metavar="RE",
        help="regular expression that finds the camera in a file name (data set 'folder')",
    )


def add_skip_unreadable(made: Parser) -> None:
    """Add --skip-unreadable. Without it, a picture that cannot be read stops the command."""
    made.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out pictures that cannot be read, and report how many there are",
    )


def add_data_set(made: Parser, *, required: bool = False) -> None:
    """Add the options that `data_set_config` reads: another data set than the one of the checkpoint. With ``required``
    there is no checkpoint, and --data has to be given.
    """
    default = "" if required else " (default: the one of the checkpoint)"
    made.add_argument(
        "--data", required=required, metavar="NAME", help=f"data set: {', '.join(DATASETS)}{default}"
    )
    made.add_argument("--root", metavar="DIR", help="folder of the data set (for csv the file)")
    made.add_argument(
        "--camera-pattern",
        metavar="RE",
        help="regular expression that finds the camera in a file name (data set 'folder')",
    )
    add_skip_unreadable(made)


def data_set_config(config: Config, args: argparse.Namespace, **more: Any) -> Config:
    """The options of a checkpoint, with the data set that the options of `add_data_set` name, and with the entries of
    ``more`` that are not None.
    """
    changes = {"data": args.data, "data_root": args.root, "camera_pattern": args.camera_pattern} | more
    changes["skip_unreadable"] = args.skip_unreadable or None
    return config.replace(**{k: v for k, v in changes.items() if v is not None})


def check_outside(out: Path, *sources: str | None) -> None:
    """Raise ConfigError if the folder of pictures to write lies in a folder that they are made from: its pictures would be
    sources the next time.
    """
    for source in sources:
        if source and os.path.isdir(place := os.path.expanduser(source)):
            inside, around = os.path.realpath(out), os.path.realpath(place)
            if inside != around and os.path.commonpath([inside, around]) == around:
                raise ConfigError(
                    f"--out {out} lies in {source}, whose pictures are read; choose another folder"
                )


def add_json(made: Parser) -> None:
    """Add --json, which `dgnet_fast.cli.output.show_tables` reads."""
    made.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=STANDARD_OUTPUT,
        metavar="FILE",
        help="also write the tables to this JSON file; without FILE, print JSON in place of the tables",
    )


def add_trust_scripts(made: Parser, options: str) -> None:
    """Add --trust-scripts, for the TorchScript files of ``options``."""
    made.add_argument(
        "--trust-scripts",
        action="store_true",
        help=f"run the files of {options} even if they are not the published ones; TorchScript is a program",
    )


def add_ranking_options(made: Parser) -> None:
    """Add the options that `ranking_of` reads."""
    made.add_argument(
        "--second-half-weight",
        default="0.5",
        metavar="X",
        help="weight of the fine-grained half of the query's feature: a number, or 'only' for that half alone (default 0.5)",
    )
    made.add_argument(
        "--rerank", action="store_true", help="also give the scores with k-reciprocal re-ranking"
    )
    made.add_argument(
        "--k1",
        type=int,
        default=20,
        metavar="N",
        help="re-ranking: number of reciprocal neighbours (default 20)",
    )
    made.add_argument(
        "--k2",
        type=int,
        default=6,
        metavar="N",
        help="re-ranking: number of neighbours that are averaged (default 6)",
    )
    made.add_argument(
        "--lambda", dest="original_weight", type=float, default=0.3, metavar="X",
        help="re-ranking: weight of the original distance (default 0.3)",
    )  # fmt: skip
    made.add_argument("--aqe", action="store_true", help="also give the scores with alpha query expansion")
    made.add_argument(
        "--aqe-neighbours",
        type=int,
        default=10,
        metavar="N",
        help="query expansion: number of neighbours (default 10)",
    )
    made.add_argument(
        "--aqe-alpha",
        type=float,
        default=3.0,
        metavar="X",
        help="query expansion: exponent of the cosine (default 3)",
    )
    made.add_argument(
        "--single-shot", action="store_true",
        help="also score with the first protocol of CUHK03: one gallery picture for each identity, drawn --repeats times",
    )  # fmt: skip
    made.add_argument(
        "--repeats", type=int, default=100, metavar="N", help="number of single-shot draws (default 100)"
    )
    made.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the single-shot draws (default 0)"
    )


def ranking_of(args: argparse.Namespace) -> Ranking:
    """The ranking that the options of `add_ranking_options` describe."""
    from dgnet_fast.retrieval.scoring import Ranking

    for name in ("k1", "k2", "aqe_neighbours", "repeats"):
        at_least(name, getattr(args, name), 1)
    for name in ("aqe_alpha", "seed"):
        at_least(name, getattr(args, name), 0)
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


def weight_of(text: str) -> float | None:
    """The value of --second-half-weight: a number, or None for 'only'. Raises ConfigError for anything else."""
    if text == "only":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"--second-half-weight is {text!r}; allowed: a number of at least 0, or 'only'")
    return value


def add_extractor_options(made: Parser) -> None:
    """Add the checkpoint as the first argument, and the options that `extractor_of` reads."""
    add_checkpoint(made)
    add_device(made)
    add_skip_unreadable(made)


def extractor_of(args: Any, **options: Any) -> Extractor:
    """The extractor that the options of `add_extractor_options` describe."""
    from dgnet_fast.retrieval.extractor import Extractor

    if args.batch < 1:
        raise ConfigError(f"--batch is {args.batch}; allowed: at least 1")
    return Extractor(
        args.checkpoint,
        device=args.device,
        batch=args.batch,
        config_file=args.config,
        allow_extra=args.allow_extra,
        **options,
    )


def readable_files(places: list[str], *, skip: bool) -> list[Path]:
    """The picture files that ``places`` name. With ``skip``, files that cannot be read are left out and counted in the
    log.
    """
    from dgnet_fast.data.datasets import unreadable
    from dgnet_fast.data.files import picture_files, unlabelled

    paths = picture_files(places)
    bad = unreadable(unlabelled(paths)) if skip else {}
    if bad:
        logger.warning(f"left out {len(bad)} of {len(paths)}; first: {next(iter(bad.values()))}")
        if len(bad) == len(paths):
            raise ValueError(f"none of the {len(paths)} pictures can be read")
    return [path for index, path in enumerate(paths) if index not in bad]


def source_config(config: Config, source: str, args: argparse.Namespace) -> Config:
    """The options with which the data set of a source is opened: those of the checkpoint, changed by --root and
    --camera-pattern.
    """
    changes = {"data_root": args.root, "camera_pattern": args.camera_pattern}
    if source.partition(":")[0] != config.data:  # another data set than the checkpoint's
        changes = {k: v or "" for k, v in changes.items()}
    return config.replace(**{k: v for k, v in changes.items() if v is not None})
