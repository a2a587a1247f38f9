"""Write files that are either complete or absent. This package writes all files that it may read again in this way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomically(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """A context with a temporary file in the folder of ``path`` and with its suffix; the file is renamed to ``path``
    when the context ends without an error.

    If the program is killed, the old file or the new one is left, never a part of one. Missing folders are created.
    With ``sync`` the content is on the disk before the name changes, so that a power failure does not leave an empty
    file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    short = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # any name fits, however long it is
    temporary = path.with_name(f".{short}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, `atomically`."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file, `atomically`."""
    write_text(path, json.dumps(content, indent=1) + "\n")
