"""What all commands share: a parser, and a way to run a command so that an error is one clear line."""

from __future__ import annotations

import argparse
import logging
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgnet_fast.cli.output import show_log
from dgnet_fast.cli.together import in_processes
from dgnet_fast.config import ConfigError
from dgnet_fast.distributed.launch import rank_said

USER_ERRORS = (ValueError, OSError, FloatingPointError)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and with --quiet and --verbose."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            *args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

        self.add_argument(
            "-q",
            "--quiet",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show only warnings and results",
        )
        self.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show more details of what happens",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. It then shows the log of the package as --quiet and --verbose ask."""
        found = super().parse_known_args(args, namespace)
        given = vars(found[0])
        if given.get("quiet") and given.get("verbose"):
            self.error("--quiet and --verbose exclude each other")
        show_log(
            logging.WARNING if "quiet" in given else logging.DEBUG if "verbose" in given else logging.INFO
        )
        return found

    def error(self, message: str) -> typing.NoReturn:
        unknown = "unrecognized arguments: "
        if message.startswith(unknown):
            word = message[len(unknown) :].split()[0].split("=")[0]
            message = f"unknown option {word!r}{self._closest(word)} (--help lists all)"
        self.exit(2, f"{self.prog}: {message}\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if rank_said() == 0:  # all processes of a run have the same words
            super()._print_message(message, file)

    def _closest(self, word: str) -> str:
        import difflib

        spellings = [s for action in self._actions for s in action.option_strings]
        close = difflib.get_close_matches(word, spellings, n=1, cutoff=0.5)
        return f"; did you mean {close[0]!r}?" if close else ""


def run_command(body: Callable[[], int | None], prog: str, *, together: bool = False) -> int:
    """Run the body of a command; a mistake of the user becomes one line on standard error and exit status 1.

    ``together``: the command can run in several processes (`in_processes`).
    """
    body = in_processes(body, together=together)
    try:
        return body() or 0
    except USER_ERRORS as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def at_least(name: str, value: float | None, low: int) -> None:
    """Raise ConfigError if the value of an option is below ``low``. None means that the option was not given."""
    if value is not None and not value >= low:
        raise ConfigError(f"--{name.replace('_', '-')} is {value}; allowed: at least {low}")


def check_new(option: str, path: Path, overwrite: bool) -> None:
    """Raise ConfigError if a file exists and --overwrite is not given, or if its folder does not exist."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{option} {path} exists; give another name, or --overwrite")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}")
