"""The folder of a translated set: its description, its manifest and its pictures, written so that it can be continued."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dgnet_fast.config.shown import shown
from dgnet_fast.generation.sets import append_rows, cut_unfinished_line, write_pictures
from dgnet_fast.report.files import (
    checksum,
    clean_temporaries,
    is_free,
    write_checked,
    write_text,
)

FORMAT = "dgnet_fast.translated.2"
WITHOUT_CHECKSUM = "dgnet_fast.translated.1"
"""The format before the checksum and the batch were added; it is still read, and continued with any batch."""


def manifest_lines(folder: str | Path, columns: Sequence[str]) -> list[list[str]]:
    """The complete lines of a manifest with these columns, without its first one. ValueError where it is damaged."""
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        raise ValueError(f"{folder} holds no translated set: there is no manifest.csv")
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
    try:
        lines = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not lines or tuple(lines[0]) != tuple(columns):
        raise ValueError(
            f"{path} is no manifest of a translated set; its first line must be {','.join(columns)}"
        )
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(line)} values; expected {len(columns)}")
    return lines[1:]


def read_description(folder: str | Path) -> dict[str, Any]:
    """The content of a set's ``set.json``; ValueError where there is none, or a damaged one."""
    path = Path(folder) / "set.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no translated set: there is no set.json") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, WITHOUT_CHECKSUM):
        raise ValueError(f"{path} does not describe a translated set (expected format {FORMAT!r})")
    if content["format"] == FORMAT:
        if content.get("checksum") != checksum(content):
            raise ValueError(f"{path} is damaged: its checksum is not that of its content")
        if type(content.get("batch")) is not int or not 1 <= content["batch"] <= 2**31:
            raise ValueError(
                f"{path}: batch is {shown(content.get('batch'))}; expected a whole number from 1"
            )
    return content


class TranslatedSet:
    """The folder of a set, opened to be begun or continued. ``columns`` are those of its manifest, which begin with ``file``.
    Hold its lock (`dgnet_fast.report.files.locked`) as long.

    A set that is continued keeps the ``batch`` of its first call, which is in ``description``: another one can change a
    pixel by 1.

    Raises ValueError where the folder holds something else: another set (the difference is named) or files
    that are no set.
    """

    def __init__(self, folder: Path, description: dict[str, Any], columns: Sequence[str]) -> None:
        if folder.is_dir():
            clean_temporaries(folder)
        self.manifest = folder / "manifest.csv"
        if (folder / "set.json").is_file():
            there = read_description(folder)
            description = description | {"batch": there.get("batch", description["batch"])}
            for key, value in description.items():
                if key not in ("format", "batch") and there.get(key) != value:
                    raise ValueError(
                        f"{folder} holds another set: {key} is {shown(there.get(key))} there and {shown(value)} here; "
                        "choose another --out"
                    )
        elif not is_free(folder):
            raise ValueError(f"{folder} exists and holds no translated set; choose another --out")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_checked(folder / "set.json", description)
        self.folder, self.description = folder, description
        if not self.manifest.exists():
            write_text(self.manifest, ",".join(columns) + "\n")
        cut_unfinished_line(self.manifest)
        self.rows = {line[0]: line for line in manifest_lines(folder, columns)}
        self.listed = set(self.rows)

    def missing(self, rows: Sequence[Any]) -> list[int]:
        """Positions of the ``rows`` whose pictures are not finished. Raises ValueError if the manifest says something else
        of one that is.
        """
        for row in rows:
            said = [str(value) for value in row]
            if (there := self.rows.get(row.file, said)) != said:
                raise ValueError(
                    f"{self.manifest} is damaged: it says {shown(there)}, expected {shown(said)}"
                )
        return [
            k
            for k, row in enumerate(rows)
            if row.file not in self.listed or not (self.folder / row.file).is_file()
        ]

    def add(self, rows: Sequence[Any], pictures: Tensor) -> None:
        """Write pictures uint8 (N, 3, H, W), and then their lines, named tuples of the columns."""
        write_pictures(self.folder, rows, pictures)
        new = [row for row in rows if row.file not in self.listed]
        if not new:
            return
        append_rows(self.manifest, new)
        self.listed.update(row.file for row in new)
