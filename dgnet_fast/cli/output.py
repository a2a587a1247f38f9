"""What commands write: result tables on standard output, the log and errors on standard error, and tables in JSON files.

Either stream may be closed, full, or a pipe that nobody reads any more. What cannot be written to standard output is an
error, which names it; what cannot be written to standard error stops nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from dgnet_fast.distributed.launch import rank_said
from dgnet_fast.report.files import write_json
from dgnet_fast.report.tables import TABLES, format_table

STANDARD_OUTPUT = Path("-")
"""The value of --json where it names no file."""


class _StandardError(logging.Handler):
    """Writes lines to the current standard error, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:  # closed by the shell, 2>&-; tqdm would write to standard output
            return
        try:
            tqdm.write(self.format(record), file=sys.stderr)
            sys.stderr.flush()
        except OSError:  # full, or nobody reads it any more
            pass
        except Exception:  # as logging does: a log that cannot be written stops nothing
            self.handleError(record)


def complain(line: str) -> None:
    """Write a line to standard error, if there is one that can be written."""
    if sys.stderr is not None:
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            let_go(sys.stderr)


class NamedOutput:
    """Standard output, whose errors name it: those of the system do not say what could not be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._named():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._named():
            self._stream.flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


def let_go(stream: TextIO | None) -> None:
    """Let what a stream still holds go if it cannot be written: Python would write it at its end, and change the exit
    status.
    """
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def show_log(level: int) -> None:
    """Show the log of this package on standard error, from ``level`` upwards. Only commands call this; a program that
    uses the library decides itself.
    """
    logger = logging.getLogger("dgnet_fast")
    for handler in [h for h in logger.handlers if isinstance(h, _StandardError)]:
        logger.removeHandler(handler)
    logger.addHandler(_StandardError())
    logger.setLevel(level if rank_said() == 0 else logging.ERROR)
    logger.propagate = False


def print_tables(tables: Sequence[dict[str, Any]], file: TextIO | None = None) -> None:
    """Print result tables as text, on standard output or to ``file``."""
    for table in tables:
        print(format_table(table), file=file, flush=True)


def show_tables(tables: Sequence[dict[str, Any]], json_file: Path | None) -> None:
    """Print result tables as text and write them to the file of --json as well. Where --json names no file, the JSON is
    printed in place of the text. The file comes first, so that it is there where standard output cannot be written.
    """
    if json_file == STANDARD_OUTPUT:
        print(json.dumps({TABLES: list(tables)}, indent=1), flush=True)
        return
    if json_file is not None and rank_said() == 0:
        write_tables(json_file, tables)
    print_tables(tables)


def write_tables(path: Path, tables: Sequence[dict[str, Any]]) -> None:
    """Write the file that ``--json`` names: ``{"tables": [{"title", "columns", "rows", "notes"}, ...]}``. Every
    command uses this form.
    """
    write_json(path, {TABLES: list(tables)})
