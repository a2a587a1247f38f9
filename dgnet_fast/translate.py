"""Translate a re-identification data set with a trained UNIT; names, identities and cameras are kept.

    python -m dgnet_fast.translate RUN market1501:train --root DIR --out DIR          from domain a to domain b
    python -m dgnet_fast.translate RUN synthetic-b:train --from-domain b --to-domain a --out DIR
    python -m dgnet_fast.translate RUN market1501 --root DIR --to-domain all --out DIR   a model of cameras: to every other one
    python -m dgnet_fast.translate gen_00100000.pt FOLDER --out DIR                   with a public checkpoint
    python -m dgnet_fast.translate RUN --export DIR                                   files that the public code loads

RUN is a run folder of dgnet_fast.unit, one of its checkpoints, or public files. The folder holds the pictures, a
manifest, and dataset.csv (data set csv). Run the same command again to translate the pictures that are missing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dgnet_fast.cli.parser import Parser, at_least, program, run_command
from dgnet_fast.cli.shared_options import add_device, check_outside
from dgnet_fast.config import ConfigError
from dgnet_fast.config.choices import FILE_TYPES
from dgnet_fast.report.files import atomic_folder, check_writable, is_free
from dgnet_fast.report.progress import progress


def parser() -> Parser:
    made = Parser(prog=program("translate"), description=__doc__)
    made.add_argument(
        "checkpoint",
        type=Path,
        metavar="RUN",
        help="run folder, step_*.pt, or a public gen_*.pt or its folder",
    )
    made.add_argument(
        "source", nargs="?", metavar="SOURCE", help="folder, DATASET:SPLIT, or DATASET for all its splits"
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of the translated data set")
    made.add_argument(
        "--from-domain", dest="origin", metavar="DOMAIN",
        help="domain of the source: a, b, …, its number or name (default: a; in a model of cameras each picture's own)",
    )  # fmt: skip
    made.add_argument(
        "--to-domain",
        dest="to",
        metavar="DOMAIN",
        help="domain to translate to, or all for every other one (default: b of two domains)",
    )
    made.add_argument(
        "--file-type", default="png", choices=tuple(FILE_TYPES),
        help="file type of the pictures; png keeps the exact values, jpg has quality 95 (default png)",
    )  # fmt: skip
    made.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file with the options of public files"
    )
    made.add_argument("--root", metavar="DIR", help="folder of the data set that SOURCE names")
    made.add_argument(
        "--camera-pattern", metavar="RE",
        help="regular expression that finds the camera in a file name (data set 'folder')",
    )  # fmt: skip
    made.add_argument(
        "--export", type=Path, metavar="DIR", help="write gen_*.pt, dis_*.pt and config.yaml here"
    )
    add_device(made, batch=32)
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    # After the options were read: they bring torch along, and --help does not need it.
    from dgnet_fast.checkpoints.unit import export_public_unit, load_unit
    from dgnet_fast.config.device import resolve_device
    from dgnet_fast.models.typed import in_channels_last
    from dgnet_fast.translation.sets import ALL, domain_names, domain_of, open_parts, write_translated

    at_least("batch", args.batch, 1)
    if args.export is None and (args.source is None or args.out is None):
        raise ConfigError("SOURCE and --out DIR say what is translated, and where to (or --export DIR)")
    if args.export is not None and not is_free(args.export):
        raise ConfigError(f"--export {args.export} exists already; choose another folder")
    for option, place in (("--export", args.export), ("--out", args.out)):
        if place is not None:
            check_writable(place, option)
    if args.out is not None:
        check_outside(args.out, args.source)
    resolve_device(args.device)
    model, known = load_unit(args.checkpoint, config_file=args.config)
    if args.export is not None:
        with atomic_folder(args.export) as folder:
            written = export_public_unit(model, folder, known["step"])
        for path in written:
            print(args.export / path.name)
    if args.source is None or args.out is None:
        return 0
    names = domain_names(model)
    if args.to is None and len(names) > 2:
        raise ConfigError(
            f"the model has {len(names)} domains: give --to-domain ({', '.join(names)}, or all)"
        )
    config = model.config.data_config()
    config.data_root, config.camera_pattern = args.root or "", args.camera_pattern or ""
    origin = args.origin
    if args.to == ALL:
        targets = list(range(len(names)))
    elif args.to is not None:
        targets = [domain_of(model, args.to, "--to-domain")]
        if origin is None and len(names) == 2 and not names[0].startswith("camera "):
            origin = "ab"[1 - targets[0]]
    else:
        first = 0 if origin is None else domain_of(model, origin, "--from-domain")
        targets = [1 - first]
    parts = open_parts(model, args.source, config, origin)
    in_channels_last(model, resolve_device(args.device))
    begin = time.perf_counter()
    made, before = write_translated(
        args.out, model, args.source, parts, targets,
        file_type=args.file_type, batch=args.batch, progress=progress("translating"),
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    print(f"{made} pictures translated in {seconds:.1f} s, {before} were there before: {args.out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("translate"))


if __name__ == "__main__":
    sys.exit(main())
