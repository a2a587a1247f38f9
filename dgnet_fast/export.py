"""Export the networks of a checkpoint for use without dgnet_fast, as ONNX or as a torch.export archive.

    python -m dgnet_fast.export RUN --network encoder --out encoder.onnx          pictures -> features, codes
    python -m dgnet_fast.export RUN --network generator --out generator.onnx      appearances, structures -> pictures
    python -m dgnet_fast.export RUN --network encoder --out encoder.pt2           torch.export.load(FILE).module()

The batch size is dynamic; height and width are those of the checkpoint. --input says which values the network takes,
and therefore whether the normalisation is inside the file; the metadata of the file says it too. Before a file is
kept, it is run beside the model and compared (ONNX in onnxruntime: pip install 'dgnet-fast[export]').
"""

from __future__ import annotations

import sys
from pathlib import Path

from dgnet_fast.checkpoints.fingerprint import fingerprint
from dgnet_fast.checkpoints.graphs import INPUTS, NETWORKS, metadata_of, save_archive, save_onnx
from dgnet_fast.checkpoints.loading import load_for_use, load_generator
from dgnet_fast.cli.parser import Parser, check_output, run_command
from dgnet_fast.cli.shared_options import add_checkpoint
from dgnet_fast.config import ConfigError
from dgnet_fast.config.extras import need

SAVE = {".onnx": save_onnx, ".pt2": save_archive}


def parser() -> Parser:
    made = Parser(prog="python -m dgnet_fast.export", description=__doc__)
    add_checkpoint(made)
    made.add_argument("--network", required=True, choices=tuple(NETWORKS), help="network to export")
    made.add_argument("--out", required=True, type=Path, metavar="FILE", help="file to write: .onnx or .pt2")
    made.add_argument(
        "--input",
        default="unit",
        choices=tuple(INPUTS),
        help="; ".join(f"{k}: {v}" for k, v in INPUTS.items()) + " (default unit)",
    )
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.out.suffix not in SAVE:
        raise ConfigError(f"--out is {str(args.out)!r}; allowed: a name ending in {', '.join(SAVE)}")
    if args.out.exists():
        raise ConfigError(f"{args.out} exists already; choose another --out")
    if args.out.suffix == ".onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            need(package, "export", "ONNX export")
    check_output("--out", args.out)
    load = load_generator if args.network == "generator" else load_for_use
    model, known = load(args.checkpoint, config_file=args.config, allow_extra=args.allow_extra)
    metadata = metadata_of(model, args.network, args.input, known, fingerprint(model))
    error = SAVE[args.out.suffix](model.eval(), args.network, args.input, args.out, metadata)
    runtime = "onnxruntime" if args.out.suffix == ".onnx" else "torch.export"
    print(
        f"{args.out}: {', '.join(NETWORKS[args.network].inputs)} -> {', '.join(NETWORKS[args.network].outputs)}"
    )
    print(
        f"input {args.input}, normalisation {metadata['normalisation']}; {runtime} differs from the model by {error:.1e} (relative)"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), "python -m dgnet_fast.export")


if __name__ == "__main__":
    sys.exit(main())
