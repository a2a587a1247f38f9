"""Score generated pictures: FID and intra-class SSIM compared with real pictures, diversity, and the truth if it is
known.

    dgnet-fast quality SET --real market1501:gallery --root MARKET --inception weights-inception-2015-12-05-6726825d.pth
    dgnet-fast quality SET RUN --real synthetic:gallery

SET is a set that `dgnet-fast generate` made, or any folder of pictures. RUN, the checkpoint that made it, adds three scores: the
Fréchet distance over the re-identification features of the checkpoint (it needs no other file, and it is not FID), the
reconstruction errors, and, for synthetic data, the swaps compared with their truth. docs/generation.md describes the
protocol.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dgnet_fast.cli.output import show_tables
from dgnet_fast.cli.parser import Parser, check_output, program, run_command
from dgnet_fast.cli.shared_options import (
    add_checkpoint,
    add_device,
    add_json,
    add_source_details,
    add_trust_scripts,
    source_config,
)
from dgnet_fast.config import Config, ConfigError
from dgnet_fast.config.choices import FID_RESIZES


def parser() -> Parser:
    made = Parser(prog=program("quality"), description=__doc__)
    made.add_argument("generated", type=Path, metavar="SET", help="generated set, or a folder of pictures")
    add_checkpoint(made, nargs="?")
    made.add_argument(
        "--real", required=True, metavar="SOURCE", help="real pictures: a folder or DATASET:SPLIT"
    )
    add_source_details(made)
    made.add_argument(
        "--inception",
        type=Path,
        metavar="FILE",
        help="file of the 2015 Inception network, for FID: weights of torch-fidelity or pytorch-fid, or TorchScript",
    )
    made.add_argument(
        "--fid-resize",
        choices=FID_RESIZES,
        default="legacy",
        help="how pictures become 299x299 for FID: as TensorFlow 1 did it, or antialiased as clean-fid does it (default legacy)",
    )
    made.add_argument(
        "--lpips",
        type=Path,
        metavar="FILE",
        help="file for LPIPS: torchvision's weights of AlexNet or VGG-16, or TorchScript of VGG-16",
    )
    add_trust_scripts(made, "--inception and --lpips")
    made.add_argument(
        "--limit", type=int, metavar="N", help="compare at most N pictures of each side (default: all)"
    )
    made.add_argument(
        "--pairs",
        type=int,
        default=1000,
        metavar="N",
        help="number of pairs for SSIM and LPIPS (default 1000)",
    )
    made.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of everything that is drawn at random (default 0)",
    )
    add_device(made)
    add_json(made)
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    from dgnet_fast.checkpoints.loading import load_generator
    from dgnet_fast.config.device import resolve_device
    from dgnet_fast.data.pictures import open_pictures
    from dgnet_fast.generation.score_networks import inception, lpips, unpublished
    from dgnet_fast.generation.scores import (
        Comparison,
        open_generated,
        reconstruction_table,
        sample,
        set_table,
        truth_table,
    )
    from dgnet_fast.models.typed import in_channels_last
    from dgnet_fast.report.progress import progress

    for name in ("limit", "pairs", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; allowed: at least 1")
    device = resolve_device(args.device)
    check_output("--json", args.json)
    trusted = args.trust_scripts
    features = (
        inception(args.inception, device, trusted=trusted, resize=args.fid_resize) if args.inception else None
    )
    distance = lpips(args.lpips, device, trusted=trusted) if args.lpips else None
    model = None
    if args.checkpoint:
        model = load_generator(args.checkpoint, config_file=args.config, allow_extra=args.allow_extra)[0]
        in_channels_last(model, device)
    config = model.config if model is not None else Config()
    generated, size = open_generated(args.generated)
    size = size or config.picture_size
    real = sample(open_pictures(args.real, source_config(config, args.real, args)), args.limit, args.seed)
    how = Comparison(
        size,
        device,
        batch=args.batch,
        pairs=args.pairs,
        seed=args.seed,
        inception=features,
        fid_resize=args.fid_resize,
        lpips=distance,
        progress=progress,
    )
    tables = []
    if model is not None:
        if (args.generated / "set.json").is_file() and (
            table := truth_table(model, args.generated, generated, size)
        ):
            tables.append(table)
        if size == config.picture_size:
            tables.append(reconstruction_table(model, real, how))
    generated = sample(generated, args.limit, args.seed)
    tables.insert(0, set_table(real, generated, model, how))
    tables[0]["notes"] += [
        note for path in (args.inception, args.lpips) if path and (note := unpublished(path))
    ]
    show_tables(tables, args.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("quality"), together=True)


if __name__ == "__main__":
    sys.exit(main())
