"""Write the retrieval features of pictures to a file.

    python -m dgnet_fast.extract FOLDER --checkpoint RUN --out features.npz
    python -m dgnet_fast.extract a.jpg b.jpg --checkpoint RUN --out features.parquet      (needs pyarrow)

Folders are searched through. An .npz holds `features` (N, F) float32, `paths` (N,) and the model's `fingerprint`; a .parquet
the columns `path` and `feature`. The features of a picture are one for each head, side by side, each of unit length.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dgnet_fast.cli import Parser, chunks_progress, run_command
from dgnet_fast.config import ConfigError
from dgnet_fast.data.datasets import unreadable
from dgnet_fast.data.files import picture_files, unlabelled
from dgnet_fast.extractor import Extractor
from dgnet_fast.extras import need

SUFFIXES = (".npz", ".parquet")


def add_checkpoint_options(made: Parser) -> None:
    """What `extractor_of` reads."""
    made.add_argument(
        "--checkpoint", required=True, metavar="RUN",
        help="run folder, step_*.pt, or a public id_*.pt or its folder",
    )  # fmt: skip
    made.add_argument(
        "--config", metavar="FILE", help="options of a public checkpoint (default: config.yaml near it)"
    )
    made.add_argument(
        "--allow-extra", action="store_true", help="let extra entries of a public checkpoint through"
    )
    made.add_argument("--batch", type=int, default=64, metavar="N", help="pictures per pass (default 64)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out pictures that cannot be read, and count them",
    )


def extractor_of(args: Any, **options: Any) -> Extractor:
    """The extractor that the options of `add_checkpoint_options` describe."""
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
    """The picture files that are named; with ``skip`` without those that cannot be read, which are counted."""
    paths = picture_files(places)
    bad = unreadable(unlabelled(paths)) if skip else {}
    if bad:
        print(f"left out {len(bad)} of {len(paths)}; first: {next(iter(bad.values()))}", file=sys.stderr)
        if len(bad) == len(paths):
            raise ValueError(f"none of the {len(paths)} pictures can be read")
    return [path for index, path in enumerate(paths) if index not in bad]


def write_features(out: Path, features: Tensor, paths: list[Path], fingerprint: str) -> None:
    """Write ``out`` (.npz or .parquet) through a temporary file."""
    names = [str(path) for path in paths]
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        if out.suffix == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, features=features.numpy(), paths=np.array(names), fingerprint=fingerprint)
        else:
            arrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
            column = arrow.FixedSizeListArray.from_arrays(features.numpy().ravel(), features.shape[1])
            table = arrow.table({"path": names, "feature": column})
            parquet.write_table(table.replace_schema_metadata({"fingerprint": fingerprint}), temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def parser() -> Parser:
    made = Parser(prog="python -m dgnet_fast.extract", description=__doc__)
    made.add_argument("pictures", nargs="+", metavar="FILE|FOLDER", help="pictures, or folders of them")
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help=".npz or .parquet to write")
    made.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    add_checkpoint_options(made)
    return made


def check_new(option: str, path: Path, overwrite: bool) -> None:
    """Refuse to write over a file without --overwrite, or into a missing folder."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{option} {path} exists; give another name, or --overwrite")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}")


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.out.suffix not in SUFFIXES:
        raise ConfigError(f"--out is {str(args.out)!r}; allowed: a name ending in {' or '.join(SUFFIXES)}")
    check_new("--out", args.out, args.overwrite)
    if args.out.suffix == ".parquet":
        need("pyarrow", "parquet", "a .parquet file")
    paths = readable_files(args.pictures, skip=args.skip_unreadable)
    extractor = extractor_of(args)
    features = extractor.files(paths, progress=chunks_progress("features"))
    write_features(args.out, features, paths, extractor.fingerprint)
    print(
        f"{args.out}: {len(features)} features of {features.shape[1]} numbers, model {extractor.fingerprint}"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), "python -m dgnet_fast.extract")


if __name__ == "__main__":
    sys.exit(main())
