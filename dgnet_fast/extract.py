"""Write the retrieval features (embeddings) of pictures to a file.

    dgnet-fast extract RUN FOLDER --out features.npz
    dgnet-fast extract RUN a.jpg b.jpg --out features.parquet      (needs pyarrow)

Folders are searched with all their subfolders. An .npz file holds `features` (N, F) float32, `paths` (N,) and the
`fingerprint` of the model; a .parquet file has the columns `path` and `feature`. The feature of a picture is the
concatenation of the features of all heads, each of unit length. If it is interrupted, the same command goes on.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dgnet_fast.cli.parser import Parser, check_new, program, run_command
from dgnet_fast.cli.shared_options import add_extractor_options, extractor_of, readable_files
from dgnet_fast.config import ConfigError
from dgnet_fast.config.extras import need
from dgnet_fast.report.files import atomically, locked
from dgnet_fast.report.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".npz", ".parquet")


def write_features(out: Path, features: Tensor, paths: list[Path], fingerprint: str) -> None:
    """Write the features (N, F) float32 to ``out`` (.npz or .parquet), atomically."""
    import numpy as np

    names = [str(path) for path in paths]
    with atomically(out) as temporary:
        if out.suffix == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, features=features.numpy(), paths=np.array(names), fingerprint=fingerprint)
        else:
            arrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
            column = arrow.FixedSizeListArray.from_arrays(features.numpy().ravel(), features.shape[1])
            shown = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]
            table = arrow.table({"path": shown, "feature": column})
            parquet.write_table(table.replace_schema_metadata({"fingerprint": fingerprint}), temporary)


def parser() -> Parser:
    made = Parser(prog=program("extract"), description=__doc__)
    add_extractor_options(made)
    made.add_argument("pictures", nargs="+", metavar="PICTURES", help="pictures, or folders of them")
    made.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="file to write (.npz or .parquet)"
    )
    made.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.out.suffix not in SUFFIXES:
        raise ConfigError(f"--out is {str(args.out)!r}; allowed: a name ending in {' or '.join(SUFFIXES)}")
    check_new("--out", args.out, args.overwrite)
    if args.out.suffix == ".parquet":
        need("pyarrow", "parquet", "a .parquet file")
    # After the options were read: they bring torch along, and --help does not need it.
    from dgnet_fast.distributed.processes import held_by_first, is_first
    from dgnet_fast.retrieval.parts import extract_in_parts, remove

    paths = readable_files(args.pictures, skip=args.skip_unreadable)
    extractor = extractor_of(args)
    parts = args.out.with_name(f"{args.out.name}.parts")
    with held_by_first(locked(parts)):
        check_new(
            "--out", args.out, args.overwrite
        )  # another process may have written it before the lock was free
        features = extract_in_parts(
            extractor, paths, parts, progress=progress("features"), overwrite=args.overwrite
        )
        if not is_first():
            return 0
        write_features(args.out, features, paths, extractor.fingerprint)
        remove(parts)
    print(
        f"{args.out}: {len(features)} features of {features.shape[1]} numbers, model {extractor.fingerprint}"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("extract"), together=True)


if __name__ == "__main__":
    sys.exit(main())
