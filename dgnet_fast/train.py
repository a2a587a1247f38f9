"""Train DG-Net.

    dgnet-fast train                                  built-in synthetic pedestrians, minutes on two cores
    dgnet-fast train --data market1501 --root DIR     the paper's run (preset paper)
    dgnet-fast train --config latest.yaml             an unchanged YAML file of the public code
    dgnet-fast train --resume --out RUN               continue a run

Every option of the configuration can be given on the command line. It replaces the value of --config, which replaces
the value of --preset.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from dgnet_fast.cli.callable import callable_module
from dgnet_fast.cli.config_options import add_config_options, config_from, given_options
from dgnet_fast.cli.output import print_tables
from dgnet_fast.cli.parser import Parser, program, run_command
from dgnet_fast.config import ConfigError, set_in_tree


def parser() -> Parser:
    made = Parser(prog=program("train"), description=__doc__)
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="run folder (default: runs/DATE-TIME-DATA-PRESET)"
    )
    made.add_argument(
        "--resume", action="store_true", help="continue the run in --out from its newest checkpoint"
    )
    early = made.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="stop after this many steps in total; the schedule does not change",
    )
    made.hide([early])
    add_config_options(made)
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    # After the options were read: they bring torch along, and --help does not need it.
    from dgnet_fast.checkpoints.runs import saved_options
    from dgnet_fast.distributed.launch import restarted
    from dgnet_fast.distributed.processes import agreed
    from dgnet_fast.training.loop import Diverged, Stopped
    from dgnet_fast.training.run import run_training

    if args.max_steps is not None and args.max_steps < 1:
        raise ConfigError(f"--max-steps is {args.max_steps}; allowed: at least 1")
    if restarted() and args.out is None:
        raise ConfigError(
            "torchrun's --max-restarts needs the run folder, to go on from its checkpoints: --out DIR"
        )
    again = restarted() and agreed((args.out / "config.yaml").exists())
    if args.resume:
        if args.out is None:
            raise ConfigError("--resume needs the run folder: --out DIR")
        if args.config or args.preset:
            raise ConfigError(
                "--resume takes the options from the run folder; leave out --config and --preset"
            )
        tree = saved_options(args.out)
        for name, value in given_options(args).items():
            set_in_tree(tree, name, value)
        config, folder = config_from(args, tree)[0], args.out
    else:
        config, name = config_from(args)
        stamp = agreed(datetime.now().strftime("%Y%m%d-%H%M%S"))
        folder = args.out or Path("runs") / f"{stamp}-{config.data}-{name}"
        if not again and agreed((folder / "config.yaml").exists()):
            raise ConfigError(
                f"{folder} already holds a run; continue it with --resume or choose another --out"
            )
    try:
        result = run_training(
            config,
            folder,
            resume=args.resume or again,
            max_steps=args.max_steps,
            given=set(given_options(args)),
        )
    except Stopped as stopped:
        print(
            f"stopped after step {stopped.step}, saved; continue with: {program('train')} --resume --out {folder}"
        )
        return 128 + stopped.signal
    except Diverged as error:
        print(f"{program('train')}: {error}", file=sys.stderr)
        return 1
    print_tables(result["tables"])
    print(f"report: {result['report']}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("train"), together=True)


callable_module(__name__, "dgnet_fast.training.train:train")

if __name__ == "__main__":
    sys.exit(main())
