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

from dgnet_fast.cli.callable import callable_module
from dgnet_fast.cli.config_options import add_config_options, config_from, given_options
from dgnet_fast.cli.parser import Parser, at_least, program, run_command
from dgnet_fast.cli.running import add_run, ended, new_folder, resumed_folder
from dgnet_fast.config import ConfigError, set_in_tree


def parser() -> Parser:
    made = Parser(prog=program("train"), description=__doc__)
    early = add_run(made, "DATE-TIME-DATA-PRESET")
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

    at_least("max_steps", args.max_steps, 1)
    if restarted() and args.out is None:
        raise ConfigError(
            "torchrun's --max-restarts needs the run folder, to go on from its checkpoints: --out DIR"
        )
    again = restarted() and agreed((args.out / "config.yaml").exists())
    if args.resume:
        folder = resumed_folder(args.out, "--config and --preset", bool(args.config or args.preset))
        tree = saved_options(folder)
        for name, value in given_options(args).items():
            set_in_tree(tree, name, value)
        config = config_from(args, tree)[0]
    else:
        config, name = config_from(args)
        folder = new_folder(args.out, f"{config.data}-{name}", again=again)
    return ended(
        lambda: run_training(
            config,
            folder,
            resume=args.resume or again,
            max_steps=args.max_steps,
            given=set(given_options(args)),
        ),
        program("train"),
        folder,
        stopped=Stopped,
        diverged=Diverged,
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("train"), together=True)


callable_module(__name__, "dgnet_fast.training.train:train")

if __name__ == "__main__":
    sys.exit(main())
