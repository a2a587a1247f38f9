"""What all commands share: a parser, and a way to run a command so that an error is one clear line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import logging
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from dgnet_fast.cli.output import STANDARD_OUTPUT, NamedOutput, complain, let_go, show_log
from dgnet_fast.cli.together import in_processes
from dgnet_fast.config import ConfigError
from dgnet_fast.config.shown import one_line
from dgnet_fast.distributed.launch import rank_said
from dgnet_fast.report.files import check_writable

logger = logging.getLogger(__name__)

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


RENAMED = {"--picture": "--rank-list", "--nearest": "--top"}
"""Names that options had once, and have no more in any command; still accepted, with a line that names the new one."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, with --quiet and --verbose, and without abbreviations.

    Options are written with hyphens; underscores are accepted. `hide` moves options from --help to --help-all.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            *args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )
        self.rare: list[tuple[argparse.Action, str | None]] = []
        self._outdated: list[str] = []
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
        self._outdated = []
        words = [self._hyphens(word) for word in (sys.argv[1:] if args is None else args)]
        found = super().parse_known_args(self._checkpoint_in_place(words), namespace)
        given = vars(found[0])
        if given.get("quiet") and given.get("verbose"):
            self.error("--quiet and --verbose exclude each other")
        for name, value in given.items():  # the shell does not expand --out=~/runs
            if isinstance(value, Path):
                setattr(found[0], name, Path(os.path.expanduser(value)))
        show_log(
            logging.WARNING if "quiet" in given else logging.DEBUG if "verbose" in given else logging.INFO
        )
        for message in self._outdated:
            logger.warning(f"{message}; the old form will be refused from 0.2 on")
        return found

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if action.type is Path and not arg_string:  # Path("") is the working folder
            raise argparse.ArgumentError(action, "it is empty; allowed: the name of a file or a folder")
        return super()._get_value(action, arg_string)

    def _checkpoint_in_place(self, words: list[Any]) -> list[Any]:
        """The words with the value of --checkpoint, as these commands were called once, where the argument stands now."""
        places = [action.dest for action in self._actions if not action.option_strings]
        at = next((k for k, word in enumerate(words) if str(word).partition("=")[0] == "--checkpoint"), None)
        if at is None or "checkpoint" not in places[:2] or "--checkpoint" in self._option_string_actions:
            return words
        _, equals, value = str(words[at]).partition("=")
        taken = 1 if equals else 2
        if not equals and at + 1 == len(words):
            return words
        value = value if equals else words[at + 1]
        self._outdated.append("--checkpoint RUN is now the argument RUN, before all others of its kind")
        rest = words[:at] + words[at + taken :]
        before = places.index("checkpoint")
        return [*rest[:before], value, *rest[before:]]

    def _hyphens(self, word: Any) -> Any:
        """``--recon_x_w=3`` as ``--recon-x-w=3``, if there is an option of that name; and today's name of a renamed option."""
        if isinstance(word, str):
            name, equals, value = word.partition("=")
            if name not in self._option_string_actions and RENAMED.get(name) in self._option_string_actions:
                self._outdated.append(f"{name} is now {RENAMED[name]}")
                return f"{RENAMED[name]}{equals}{value}"
        if not (isinstance(word, str) and word.startswith("--") and "_" in word):
            return word
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        return f"{name}{equals}{value}" if name in self._option_string_actions else word

    def error(self, message: str) -> typing.NoReturn:
        unknown = "unrecognized arguments: "
        if message.startswith(unknown):
            word = message[len(unknown) :].split(" ")[0].split("=")[0]
            message = f"unknown option {word!r}{self._closest(word)} ({'--help-all' if self.rare else '--help'} lists all)"
        self.exit(2, f"{self.prog}: {one_line(message)[:LONGEST_LINE]}\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if not message or rank_said() != 0:  # all processes of a run have the same words
            return
        if file is None or file is sys.stderr:
            complain(message.rstrip("\n"))
        else:
            file.write(message)  # argparse would keep an error to itself

    def _closest(self, word: str) -> str:
        import difflib

        spellings = [s for action in self._actions for s in action.option_strings]
        close = difflib.get_close_matches(word.replace("_", "-"), spellings, n=1, cutoff=0.5)
        return f"; did you mean {close[0]!r}?" if close else ""


def run_command(body: Callable[[], int | None], prog: str, *, together: bool = False) -> int:
    """Run the body of a command. A mistake of the user, a full disk, and too little memory become one line on standard
    error and exit status 1. A signal that ends the command gives 128 plus its number; so does a reader of the output
    that went away, quietly.

    ``together``: the command can run in several processes (`in_processes`).
    """
    body = in_processes(body, together=together)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # names of files that are no UTF-8 are printed as their bytes; other encodings lack letters such as ±
            errors = "surrogateescape" if (stream.encoding or "").lower() == "utf-8" else "backslashreplace"
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors=errors)
    printed = sys.stdout
    try:
        return _written(body)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except USER_ERRORS as error:
        complain(f"{prog}: {explanation(error)}")
        return 1
    except (MemoryError, RuntimeError) as error:
        text = explanation(error)
        if not isinstance(error, MemoryError) and not any(one in text for one in OUT_OF_MEMORY):
            raise
        complain(f"{prog}: there is not enough memory: {text}")
        return 1
    except KeyboardInterrupt:
        complain(f"{prog}: interrupted")
        return 128 + signal.SIGINT
    finally:
        let_go(printed)
        let_go(sys.stderr)


def _written(body: Callable[[], int | None]) -> int:
    """Run the body of a command and write all that it printed; also what --help does, which ends by SystemExit."""
    if sys.stdout is None:  # closed by the shell, >&-
        return body() or 0
    output = NamedOutput(sys.stdout)
    with contextlib.redirect_stdout(cast(typing.TextIO, output)):
        try:
            return body() or 0
        finally:
            if not isinstance(sys.exception(), Exception):
                output.flush()


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "invalid buffer size")
"""What PyTorch says in a RuntimeError when an allocation failed."""


def explanation(error: BaseException) -> str:
    """An error as one line that a terminal shows as it is. That of an OSError begins with the file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text += " (nothing that was there before is lost)"
    else:
        text = str(error) or type(error).__name__
    text = one_line(text)
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."


LONGEST_LINE = 2000


def at_least(name: str, value: float | None, low: int) -> None:
    """Raise ConfigError if the value of an option is below ``low``. None means that the option was not given."""
    if value is not None and not value >= low:
        raise ConfigError(f"--{name.replace('_', '-')} is {value}; allowed: at least {low}")


def check_new(option: str, path: Path, overwrite: bool) -> None:
    """Raise ConfigError if a file exists and --overwrite is not given, or if its folder does not exist; OSError if it
    cannot be written.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{option} {path} exists; give another name, or --overwrite")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}")
    check_output(option, path)


def check_output(option: str, path: Path | None) -> None:
    """Raise ConfigError if ``path`` is a folder, and OSError if it cannot be written. None means that the option was
    not given.
    """
    if path is None or path == STANDARD_OUTPUT:
        return
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; allowed: the name of a file")
    check_writable(path, option)


def check_png(option: str, path: Path | None) -> None:
    """As `check_output`, of a picture: raises ConfigError for another suffix than .png as well."""
    if path is not None and path.suffix.lower() != ".png":
        raise ConfigError(f"{option} is {str(path)!r}; allowed: a name ending in .png")
    check_output(option, path)
