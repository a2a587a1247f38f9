"""Generate pictures with a trained checkpoint: the appearance of one picture in the structure of another.

    dgnet-fast generate pair RUN --appearance A.jpg --structure B.jpg --out swap.png
    dgnet-fast generate grid RUN --appearances DIR --structures DIR --out grid.png
    dgnet-fast generate cross RUN --appearances DIR --structures DIR --out DIR      every combination
    dgnet-fast generate set RUN --source market1501:train --root DIR --count 24000 --out DIR
    dgnet-fast generate interpolate RUN --first A.jpg --last B.jpg --fixed C.jpg --out path.png
    dgnet-fast generate figure swap RUN --source synthetic:gallery --out figure.png

Pictures come from a file, a folder, or a data set with its split, such as synthetic:gallery. The checkpoint is a run
folder, a step_*.pt, a .safetensors file, or a public id_*.pt with its gen_*.pt. cross and set write a manifest; run
the same command again to generate the pictures that are missing. Existing files are never overwritten or removed.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dgnet_fast.cli.parser import Parser, program, run_command
from dgnet_fast.cli.shared_options import (
    add_checkpoint,
    add_device,
    add_source_details,
    check_outside,
    source_config,
)
from dgnet_fast.config import Config, ConfigError
from dgnet_fast.config.choices import FIGURES, FILE_TYPES
from dgnet_fast.report.files import check_writable, write_new
from dgnet_fast.report.progress import progress

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dgnet_fast.data.pictures import Pictures
    from dgnet_fast.models.dgnet import DGNet

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


def _common(parser: Parser, out: str) -> None:
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help=out)
    add_source_details(parser)
    add_device(parser, batch=32)
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of everything that is drawn at random (default 0)",
    )


def _two_sources(parser: Parser, count: int | None) -> None:
    parser.add_argument(
        "--source", help="file, folder or DATASET:SPLIT that gives both the appearances and the structures"
    )
    parser.add_argument(
        "--appearances", metavar="SOURCE", help="file, folder or DATASET:SPLIT (default: --source)"
    )
    parser.add_argument(
        "--structures", metavar="SOURCE", help="file, folder or DATASET:SPLIT (default: --source)"
    )
    if count is not None:
        parser.add_argument(
            "--limit",
            type=int,
            default=count,
            metavar="N",
            help=f"number of appearances and of structures, from different people if they are known (default {count})",
        )


def _set_options(parser: Parser) -> None:
    parser.add_argument(
        "--file-type",
        default="png",
        choices=tuple(FILE_TYPES),
        help="file type of the pictures (default png)",
    )


def parser() -> Parser:
    made = Parser(prog=program("generate"), description=__doc__)
    modes = made.add_subparsers(dest="mode", metavar="MODE", required=True)

    pair = modes.add_parser("pair", help="one picture with the appearance of A and the structure of B")
    pair.add_argument("--appearance", required=True, metavar="FILE", help="picture that gives the appearance")
    pair.add_argument("--structure", required=True, metavar="FILE", help="picture that gives the structure")
    pair.add_argument(
        "--plain",
        action="store_true",
        help="write the generated picture alone, at the size of the network (default: labelled, beside the two given ones)",
    )
    _common(pair, "picture to write (.png or .jpg)")

    grid = modes.add_parser("grid", help="one page: each row is a structure, each column an appearance")
    _two_sources(grid, 8)
    _common(grid, "picture to write (.png or .jpg)")

    cross = modes.add_parser(
        "cross", help="every appearance with every structure, one file each, with a manifest"
    )
    _two_sources(cross, None)
    _set_options(cross)
    _common(cross, "folder of the set")

    whole = modes.add_parser("set", help="a synthetic set: random pairs of different people, with a manifest")
    _two_sources(whole, None)
    whole.add_argument("--count", required=True, type=int, metavar="N", help="number of pictures to generate")
    _set_options(whole)
    _common(whole, "folder of the set")

    path = modes.add_parser("interpolate", help="pictures between two appearances or two structures")
    path.add_argument(
        "--of",
        default="appearance",
        choices=("appearance", "structure"),
        help="code that is interpolated (default appearance)",
    )
    path.add_argument("--first", required=True, metavar="FILE", help="picture whose code is the start")
    path.add_argument("--last", required=True, metavar="FILE", help="picture whose code is the end")
    path.add_argument("--fixed", required=True, metavar="FILE", help="picture that gives the other code")
    path.add_argument(
        "--steps", type=int, default=8, metavar="N", help="number of pictures, both ends included (default 8)"
    )
    _common(path, "picture to write (.png or .jpg)")

    figure = modes.add_parser("figure", help=f"a figure as in the paper: {', '.join(FIGURES)}")
    figure.add_argument(
        "name", choices=tuple(FIGURES), help="; ".join(f"{k}: {v}" for k, v in FIGURES.items())
    )
    figure.add_argument(
        "--source", help="file, folder or DATASET:SPLIT (default: the gallery of the checkpoint's data set)"
    )
    figure.add_argument(
        "--limit", type=int, default=6, metavar="N", help="number of people, one in each row (default 6)"
    )
    figure.add_argument(
        "--steps", type=int, default=8, metavar="N", help="number of pictures in an interpolation (default 8)"
    )
    _common(figure, "picture to write (.png or .jpg)")
    return made


MOST_ON_A_PAGE = 1000
"""Pictures in a row or column of a page, or steps between two."""


def _sources(args: argparse.Namespace, config: Config) -> tuple[Pictures, Pictures]:
    from dgnet_fast.data.pictures import open_pictures

    named = args.appearances or args.source, args.structures or args.source
    if None in named:
        raise ConfigError("where from? give --source, or --appearances and --structures")
    first = open_pictures(named[0], source_config(config, named[0], args))
    if named[0] == named[1]:
        return first, first
    return first, open_pictures(named[1], source_config(config, named[1], args))


def _check(args: argparse.Namespace) -> None:
    for name in ("batch", "limit", "count"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; allowed: at least 1")
    for name in ("steps", "limit"):
        if (value := getattr(args, name, None)) is not None and value > MOST_ON_A_PAGE:
            raise ConfigError(f"--{name} is {value}; allowed: at most {MOST_ON_A_PAGE}")
    if getattr(args, "steps", 2) < 2:
        raise ConfigError(f"--steps is {args.steps}; allowed: at least 2")
    from dgnet_fast.distributed.launch import launched

    if args.mode not in ("cross", "set") and (place := launched()):
        raise ConfigError(f"torchrun started {place.size} processes, and only cross and set run in several")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; allowed: at least 0")
    if args.mode not in ("cross", "set"):
        if args.out.suffix.lower() not in PICTURE_SUFFIXES:
            raise ConfigError(
                f"--out is {str(args.out)!r}; allowed: a name ending in {', '.join(PICTURE_SUFFIXES)}"
            )
        if args.out.exists():
            raise ConfigError(f"{args.out} exists already; choose another --out")
    else:
        places = (getattr(args, name, None) for name in ("source", "appearances", "structures"))
        check_outside(args.out, *places)
    check_writable(args.out, "--out")


def _one(source: str, size: tuple[int, int]) -> torch.Tensor:
    from dgnet_fast.data.pictures import open_pictures

    if not Path(source).is_file():
        raise ConfigError(f"no such picture: {source}")
    return open_pictures(source, Config()).decode(*size)[0]


def _picture(args: argparse.Namespace, model: DGNet) -> Image.Image:
    """The picture of a mode that writes a single picture."""
    import numpy as np
    import torch

    from dgnet_fast.data.pictures import open_pictures
    from dgnet_fast.generation.codes import (
        Swapper,
        appearance_codes,
        decode_codes,
        interpolate,
        structure_codes,
    )
    from dgnet_fast.generation.figures import draw_figure
    from dgnet_fast.generation.pairs import all_pairs, spread
    from dgnet_fast.report.grid import image_grid, picture_rows, to_image

    size = model.config.picture_size
    if args.mode == "pair":
        pair = torch.stack([_one(args.appearance, size), _one(args.structure, size)])
        appearance, structure = appearance_codes(model, pair[:1]), structure_codes(model, pair[1:])
        swapped = decode_codes(model, appearance, structure)[0]
        if args.plain:
            return to_image(swapped)
        return picture_rows([[*pair, swapped]], ["appearance", "structure", "generated"], breaks=(2,))
    if args.mode == "interpolate":
        first, last, fixed = (_one(name, size) for name in (args.first, args.last, args.fixed))
        made = interpolate(model, first, last, fixed, args.steps, of=args.of)
        labels = [f"{k / (args.steps - 1):.2f}" for k in range(args.steps)]
        return picture_rows(
            [[fixed, first, *made, last]], ["fixed", "first", *labels, "last"], breaks=(1, 2, 2 + args.steps)
        )
    if args.mode == "figure":
        source = args.source or f"{model.config.data}:gallery"
        pictures = open_pictures(source, source_config(model.config, source, args))
        return draw_figure(args.name, model, pictures, count=args.limit, steps=args.steps, seed=args.seed)
    appearances, structures = _sources(args, model.config)
    columns = appearances.choose(spread(appearances, args.limit, args.seed))
    rows = structures.choose(spread(structures, args.limit, args.seed))
    swapper, pairs = Swapper(model, columns, rows), all_pairs(columns, rows)
    cells = torch.cat([swapper(part) for part in np.array_split(pairs, -(-len(pairs) // args.batch))])
    return image_grid(
        rows.decode(*size), columns.decode(*size), cells.unflatten(0, (len(rows), len(columns)))
    )


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    from dgnet_fast.checkpoints.fingerprint import fingerprint
    from dgnet_fast.checkpoints.loading import load_generator
    from dgnet_fast.config.device import resolve_device
    from dgnet_fast.generation.codes import Swapper
    from dgnet_fast.generation.pairs import all_pairs, random_pairs
    from dgnet_fast.generation.sets import write_set
    from dgnet_fast.models.typed import in_channels_last

    _check(args)
    device = resolve_device(args.device)
    model, known = load_generator(args.checkpoint, config_file=args.config, allow_extra=args.allow_extra)
    in_channels_last(model, device)
    start = time.perf_counter()
    if args.mode in ("cross", "set"):
        appearances, structures = _sources(args, model.config)
        if args.mode == "cross":
            pairs = all_pairs(appearances, structures)
        else:
            pairs = random_pairs(appearances, structures, args.count, args.seed)
        made, before = write_set(
            args.out, Swapper(model, appearances, structures), appearances, structures, pairs,
            seed=args.seed, checkpoint=fingerprint(model), file_type=args.file_type, batch=args.batch,
            progress=progress("pictures"),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        print(
            f"{made} pictures made in {seconds:.1f} s ({made / seconds:.1f} a second), {before} were there; {args.out / 'manifest.csv'}"
        )
        return 0
    picture = _picture(args, model)
    data = io.BytesIO()
    picture.save(data, "PNG" if args.out.suffix.lower() == ".png" else "JPEG", quality=95)
    write_new(args.out, data.getvalue())
    print(args.out)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("generate"), together=True)


if __name__ == "__main__":
    sys.exit(main())
