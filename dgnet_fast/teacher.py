"""Train only the teacher, which is the paper's re-identification baseline (one head, cross entropy).

    dgnet-fast teacher --data market1501 --root DIR --out runs/teacher
    dgnet-fast train   --data market1501 --root DIR --teacher runs/teacher

    dgnet-fast teacher --generated SET --labeller runs/teacher/teacher.pt --out runs/more

The third command also trains on a generated set. The command writes teacher.pt (for --teacher), net_last.pth and
opts.yaml (in the layout of the public code), and the scores into the folder. If the training is interrupted, run the
command again with the same --out to continue it.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from dgnet_fast.cli.config_options import add_config_options, config_from
from dgnet_fast.cli.output import print_tables, write_tables
from dgnet_fast.cli.parser import Parser, program, run_command
from dgnet_fast.config import ConfigError


def parser() -> Parser:
    made = Parser(prog=program("teacher"), description=__doc__)
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the teacher (default: runs/DATE-TIME-DATA-teacher)"
    )
    made.add_argument(
        "--generated",
        type=Path,
        metavar="DIR",
        help="generated set (made by dgnet_fast.generate) to train on in addition",
    )
    made.add_argument(
        "--labeller",
        default="",
        metavar="FILE",
        help="teacher that gives the generated pictures their soft labels",
    )
    made.add_argument(
        "--generated-weight",
        type=float,
        default=1.0,
        metavar="X",
        help="weight of the loss of the generated pictures (default 1)",
    )
    add_config_options(made)
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    # After the options were read: they bring torch along, and --help does not need it.
    from dgnet_fast.distributed.processes import agreed, is_first
    from dgnet_fast.training.loop import Stopped
    from dgnet_fast.training.teacher_run import run_teacher

    config, _ = config_from(args)
    if args.generated and not args.labeller:
        raise ConfigError("--generated needs the teacher that labels its pictures: --labeller FILE")
    if not 0 <= args.generated_weight < float("inf"):
        raise ConfigError(f"--generated-weight is {args.generated_weight}; allowed: at least 0")
    stamp = agreed(datetime.now().strftime("%Y%m%d-%H%M%S"))
    folder = args.out or Path("runs") / f"{stamp}-{config.data}-teacher"
    if agreed((folder / "teacher.pt").exists() and (folder / "results.json").exists()):
        raise ConfigError(f"{folder} already holds a finished teacher; choose another --out")
    try:
        tables = run_teacher(
            config, folder, generated=args.generated, labeller=args.labeller, weight=args.generated_weight
        )
    except Stopped as stopped:
        print(f"stopped after step {stopped.step}, saved; the same command with --out {folder} continues")
        return 128 + stopped.signal
    if is_first():
        write_tables(folder / "results.json", tables)
    print_tables(tables)
    print(f"teacher: {folder / 'teacher.pt'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("teacher"), together=True)


if __name__ == "__main__":
    sys.exit(main())
