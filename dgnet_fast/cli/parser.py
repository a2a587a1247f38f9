"""What the commands share: a parser and a way to run whose errors are one clear line."""

from __future__ import annotations

import argparse
import logging
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgnet_fast.cli.output import show_log
from dgnet_fast.config import ConfigError

USER_ERRORS = (ValueError, OSError, FloatingPointError)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            *args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

        self.add_argument(
            "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="only warnings and results"
        )
        self.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="more about what happens"
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; then the log of the package is shown as --quiet and --verbose ask."""
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

    def _closest(self, word: str) -> str:
        import difflib

        spellings = [s for action in self._actions for s in action.option_strings]
        close = difflib.get_close_matches(word, spellings, n=1, cutoff=0.5)
        return f"; did you mean {close[0]!r}?" if close else ""


def run_command(body: Callable[[], int | None], prog: str) -> int:
    """Run a command's body; a user's mistake becomes one line on standard error and status 1."""
    try:
        return body() or 0
    except USER_ERRORS as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def at_least(name: str, value: float | None, low: int) -> None:
    """Refuse an option's value below ``low``; None is one not given."""
    if value is not None and not value >= low:
        raise ConfigError(f"--{name.replace('_', '-')} is {value}; allowed: at least {low}")


def check_new(option: str, path: Path, overwrite: bool) -> None:
    """Refuse to write over a file without --overwrite, or into a missing folder."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{option} {path} exists; give another name, or --overwrite")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}")
