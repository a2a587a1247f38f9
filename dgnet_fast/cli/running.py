"""What the commands that train in a run folder share: how a run begins, goes on and ends."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from dgnet_fast.cli.output import complain, print_tables
from dgnet_fast.cli.parser import Parser
from dgnet_fast.config import ConfigError


def add_run(made: Parser, default: str) -> argparse.Action:
    """Add --out, --resume and --max-steps, and return the last; ``default`` is the name of a run folder in words."""
    made.add_argument("--out", type=Path, metavar="DIR", help=f"run folder (default: runs/{default})")
    made.add_argument(
        "--resume", action="store_true", help="continue the run in --out from its newest checkpoint"
    )
    return made.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="stop after this many steps in total; the schedule does not change",
    )


def resumed_folder(out: Path | None, others: str, given: bool) -> Path:
    """The folder of the run that goes on. Raises ConfigError without one, and where options are ``given`` that are
    taken from it; ``others`` names these.
    """
    if out is None:
        raise ConfigError("--resume needs the run folder: --out DIR")
    if given:
        raise ConfigError(f"--resume takes the options from the run folder; leave out {others}")
    return out


def new_folder(out: Path | None, name: str, *, again: bool = False) -> Path:
    """The folder of a new run: --out, or one of this time and ``name``. Raises ConfigError where there is a run already,
    unless it begins ``again`` (torchrun's restarts).
    """
    from dgnet_fast.distributed.processes import agreed  # brings torch along

    stamp = agreed(datetime.now().strftime("%Y%m%d-%H%M%S"))
    folder = out or Path("runs") / f"{stamp}-{name}"
    if not again and agreed((folder / "config.yaml").exists()):
        raise ConfigError(f"{folder} already holds a run; continue it with --resume or choose another --out")
    return folder


def ended(
    work: Callable[[], dict[str, Any]],
    prog: str,
    folder: Path,
    *,
    stopped: type[Exception],
    diverged: type[Exception],
) -> int:
    """Run a training to its end and print its tables and where its report is; returns the exit status, 128 plus the
    signal's number after a signal. ``stopped`` and ``diverged`` are the exceptions by which a training says so.
    """
    try:
        result = work()
    except stopped as error:
        step, number = error.step, error.signal  # pyright: ignore[reportAttributeAccessIssue]
        print(f"stopped after step {step}, saved; continue with: {prog} --resume --out {folder}")
        return 128 + number
    except diverged as error:
        complain(f"{prog}: {error}")
        return 1
    print_tables(result["tables"])
    print(f"report: {result['report']}")
    return 0
