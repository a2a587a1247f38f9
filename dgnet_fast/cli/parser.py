"""What all commands share: a parser, and a way to run a command so that an error is one clear line."""

from __future__ import annotations

import argparse
import logging
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dgnet_fast.cli.output import show_log
from dgnet_fast.config import ConfigError

USER_ERRORS = (ValueError, OSError, FloatingPointError)


def program(command: str) -> str:
    """How the user called a command, such as ``dgnet-fast train`` or ``python -m dgnet_fast.train``."""
    called = Path(sys.argv[0])
    if called.name == "dgnet-fast":
        return f"dgnet-fast {command.replace('_', '-')}"
    if called.name == "__main__.py" and called.parent.name == "dgnet_fast":
        return f"python -m dgnet_fast {command.replace('_', '-')}"
    return f"python -m dgnet_fast.{command}"


class _HelpAll(argparse.Action):
    """--help-all: prints the help with the options that --help leaves out."""

    def __call__(self, parser: Any, *_: Any) -> None:
        for action, text in parser.rare:
            action.help = text
        parser.usage = "%(prog)s [OPTION ...]"
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, with --quiet and --verbose, and without abbreviations.

    Options are written with hyphens; underscores are accepted. `hide` moves options from --help to --help-all.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            *args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )
        self.rare: list[tuple[argparse.Action, str | None]] = []
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

    def hide(self, actions: Iterable[argparse.Action]) -> None:
        """Leave options out of --help; --help-all, which this adds, shows them."""
        if not self.rare:
            self.add_argument(
                "--help-all", action=_HelpAll, nargs=0, help="show all options, not only the most used ones"
            )
        for action in actions:
            self.rare.append((action, action.help))
            action.help = argparse.SUPPRESS

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. It then shows the log of the package as --quiet and --verbose ask."""
        words = [self._hyphens(word) for word in (sys.argv[1:] if args is None else args)]
        found = super().parse_known_args(words, namespace)
        given = vars(found[0])
        if given.get("quiet") and given.get("verbose"):
            self.error("--quiet and --verbose exclude each other")
        show_log(
            logging.WARNING if "quiet" in given else logging.DEBUG if "verbose" in given else logging.INFO
        )
        return found

    def _hyphens(self, word: Any) -> Any:
        """``--recon_x_w=3`` as ``--recon-x-w=3``, if there is an option of that name."""
        if not (isinstance(word, str) and word.startswith("--") and "_" in word):
            return word
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        return f"{name}{equals}{value}" if name in self._option_string_actions else word

    def error(self, message: str) -> typing.NoReturn:
        unknown = "unrecognized arguments: "
        if message.startswith(unknown):
            word = message[len(unknown) :].split()[0].split("=")[0]
            message = f"unknown option {word!r}{self._closest(word)} ({'--help-all' if self.rare else '--help'} lists all)"
        self.exit(2, f"{self.prog}: {message}\n")

    def _closest(self, word: str) -> str:
        import difflib

        spellings = [s for action in self._actions for s in action.option_strings]
        close = difflib.get_close_matches(word.replace("_", "-"), spellings, n=1, cutoff=0.5)
        return f"; did you mean {close[0]!r}?" if close else ""


def run_command(body: Callable[[], int | None], prog: str) -> int:
    """Run the body of a command; a mistake of the user becomes one line on standard error and exit status 1."""
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
