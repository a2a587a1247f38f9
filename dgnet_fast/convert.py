"""Convert a checkpoint between three formats: our runs, the gen_/id_/dis_*.pt of the public code, and safetensors.

    python -m dgnet_fast.convert RUN --to public --out DIR                              files that the public code loads
    python -m dgnet_fast.convert id_00100000.pt --to run --out runs/released            a run that can be resumed
    python -m dgnet_fast.convert id_00100000.pt --to safetensors --out dgnet.safetensors

The result is read back and compared, tensor by tensor. Existing files are not overwritten.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from dgnet_fast.checkpoints.fingerprint import fingerprint, model_state
from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.checkpoints.public import missing_networks, save_public
from dgnet_fast.checkpoints.runs import save_run_folder
from dgnet_fast.checkpoints.safetensors import save_safetensors
from dgnet_fast.cli.parser import Parser, run_command
from dgnet_fast.cli.shared_options import add_checkpoint
from dgnet_fast.config import ConfigError
from dgnet_fast.report.files import atomic_folder, check_writable

logger = logging.getLogger("dgnet_fast")  # __name__ is __main__ in a command

FORMATS = ("public", "run", "safetensors")


def parser() -> Parser:
    made = Parser(prog="python -m dgnet_fast.convert", description=__doc__)
    add_checkpoint(made)
    made.add_argument("--to", required=True, choices=FORMATS, help="format to write")
    made.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="folder (for public and run) or file (for safetensors) to write",
    )
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.to == "safetensors" and args.out.suffix != ".safetensors":
        raise ConfigError(
            f"--out is {str(args.out)!r}; allowed with --to safetensors: a name ending in .safetensors"
        )
    if args.out.exists() and (args.out.is_file() or any(args.out.iterdir())):
        raise ConfigError(f"{args.out} exists already; choose another --out")
    check_writable(args.out, "--out")
    model, known = load_for_use(args.checkpoint, config_file=args.config, allow_extra=args.allow_extra)
    absent = missing_networks(known)
    if "gen" in absent:
        raise ConfigError(f"{known['source']} has no gen_*.pt beside it; a checkpoint needs E_s, G and E_a")
    if "dis" in absent:
        logger.warning("no dis_*.pt in the source: D is written with its fresh weights")
    if args.to == "safetensors":
        written = [save_safetensors(model, known, args.out)]
    else:
        with atomic_folder(args.out) as folder:
            if args.to == "public":
                written = save_public(model, known, folder)
            else:
                written = [save_run_folder(model, known, folder)]
        written = [args.out / path.relative_to(folder) for path in written]
    again, _ = load_for_use(args.out)
    ours, theirs = model_state(model), model_state(again)
    different = [name for name in ours if not ours[name].equal(theirs[name])]
    if different:
        raise OSError(f"{args.out} does not read back as written: {different[:4]}")
    for path in written:
        print(path)
    print(f"{len(ours)} tensors, read back equal; weights {fingerprint(model)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), "python -m dgnet_fast.convert")


if __name__ == "__main__":
    sys.exit(main())
