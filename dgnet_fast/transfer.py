"""Score what translated pictures are worth: the baseline trained on them and tested on the target, beside direct transfer.

    python -m dgnet_fast.transfer --from-data synthetic-a --to-data synthetic-b --translated DIR --seeds 0 1 2 --out DIR
    python -m dgnet_fast.transfer --from-data market1501 --from-root A --to-data dukemtmc-reid --to-root B \\
        --translated DIR --out DIR --preset paper

Every row has the same recipe, number of steps and seeds. --unit RUN adds the checks that need no training of a baseline
on translated pictures: the Fréchet distance to the target, a classifier's answer, and Rank-1 of translated queries in
their own gallery. A stopped comparison goes on when the command is run again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from dgnet_fast.cli.output import show_tables, write_tables
from dgnet_fast.cli.parser import Parser, at_least, check_output, program, run_command
from dgnet_fast.cli.shared_options import add_device, add_json, add_trust_scripts
from dgnet_fast.config import DATASETS, DRAWN, Config, ConfigError, from_dict
from dgnet_fast.config.presets import PRESETS, preset
from dgnet_fast.report.files import check_writable, locked

logger = logging.getLogger("dgnet_fast")  # __name__ is __main__ in a command


def parser() -> Parser:
    made = Parser(prog=program("transfer"), description=__doc__)
    for side, name, what in (
        ("from", "source", "labelled data set that is translated"),
        ("to", "target", "data set that is scored"),
    ):
        made.add_argument(f"--{side}-data", dest=name, required=True, metavar="NAME", help=what)
        made.add_argument(f"--{side}-root", dest=f"{name}_root", metavar="DIR", help="its folder")
    made.add_argument(
        "--translated", required=True, type=Path, metavar="DIR",
        help="the source's training pictures as dgnet_fast.translate wrote them",
    )  # fmt: skip
    made.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the comparison")
    made.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds (default 0 1 2)"
    )
    made.add_argument(
        "--preset",
        metavar="NAME",
        help=f"recipe of the baseline: {', '.join(PRESETS)} (default: small for drawn data, otherwise paper)",
    )
    made.add_argument(
        "--steps", type=int, metavar="N", help="steps of the baseline (default: the preset's teacher_steps)"
    )
    made.add_argument("--within", action="store_true", help="also train on the target's own training set")
    made.add_argument("--unit", type=Path, metavar="RUN", help="the model that translated, for the checks")
    made.add_argument(
        "--inception", type=Path, metavar="FILE",
        help="file of the 2015 Inception network (docs/weights_and_data.md): the distance is then FID",
    )  # fmt: skip
    add_trust_scripts(made, "--inception")
    add_device(made, batch=None)
    add_json(made)
    return made


def recipe(args: argparse.Namespace, name: str, root: str | None) -> Config:
    """The options of the baseline with the data set ``name``."""
    if name not in DATASETS:
        raise ConfigError(f"data set is {name!r}; allowed: {', '.join(DATASETS)}")
    chosen = args.preset or ("small" if args.source in DRAWN else "paper")
    changes = {"data": name, "data_root": root or "", "device": args.device}
    if args.steps:
        changes["teacher_steps"] = args.steps
    return from_dict(preset(chosen)).replace(**changes)


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    at_least("steps", args.steps, 1)
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise ConfigError(f"--seeds is {args.seeds}; allowed: different numbers of at least 0")
    if args.inception and not args.unit:
        raise ConfigError(
            "--inception is for the checks of translated pictures; give their model too: --unit RUN"
        )
    # After the options were read: they bring torch along, and --help does not need it.
    from dgnet_fast.checkpoints.unit import load_unit
    from dgnet_fast.config.device import resolve_device
    from dgnet_fast.data.datasets import dataset_of
    from dgnet_fast.data.rules import check_scorable, check_trainable
    from dgnet_fast.generation.score_networks import inception
    from dgnet_fast.training.loop import Stopped, StopSignal
    from dgnet_fast.training.optim import Precision, resolve_amp
    from dgnet_fast.translation.checks import check_translation
    from dgnet_fast.translation.sets import read_translated, with_training
    from dgnet_fast.translation.transfer import BOTH, DIRECT, TRANSLATED, WITHIN, run_transfer, transfer_table

    if args.inception:
        inception(args.inception, trusted=args.trust_scripts)  # before the baselines are trained
    model = load_unit(args.unit)[0] if args.unit else None
    config = recipe(args, args.source, args.source_root)
    source = dataset_of(config)
    target = dataset_of(recipe(args, args.target, args.target_root))
    check_trainable(source)
    check_scorable(target.query, target.gallery)
    check_writable(args.out / "results.json", "--out")
    check_output("--json", args.json)
    made = read_translated(args.translated)
    if unknown := sorted(set(made.ids.tolist()) - set(source.train.ids.tolist())):
        raise ValueError(
            f"{args.translated} has the identity {unknown[0]}, which {args.source} does not train on"
        )
    arms = {
        DIRECT: source,
        TRANSLATED: with_training(source, "translated", made),
        BOTH: with_training(source, "both", source.train, made),
    }
    if args.within:
        arms[WITHIN] = target
    device = resolve_device(args.device)
    precision = Precision(resolve_amp(config, device), device)
    try:
        with locked(args.out), StopSignal() as stop:
            cells = run_transfer(config, arms, target, args.seeds, args.out, precision, stop)
            tables = [transfer_table(cells, args.source, target, args.seeds, config.teacher_steps)]
            if model is not None:
                tables.append(
                    check_translation(
                        model, config, source, target, args.out, precision, stop, args.inception, args.trust_scripts
                    )
                )  # fmt: skip
            write_tables(args.out / "results.json", tables)
    except Stopped as stopped:
        print(f"stopped after step {stopped.step} of a baseline, saved; run the same command again to go on")
        return 128 + stopped.signal
    show_tables(tables, args.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("transfer"))


if __name__ == "__main__":
    sys.exit(main())
