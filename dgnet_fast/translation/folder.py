"""The folder of a translated set: its description, its manifest and its pictures, written so that it can be continued."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from dgnet_fast.generation.sets import JPEG_QUALITY, cut_unfinished_line
from dgnet_fast.report.files import write_bytes, write_json, write_text
from dgnet_fast.report.grid import to_image


def manifest_lines(folder: str | Path, columns: Sequence[str]) -> list[list[str]]:
    """The complete lines of a manifest with these columns, without its first one. ValueError where it is damaged."""
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        raise ValueError(f"{folder} holds no translated set: there is no manifest.csv")
    text = path.read_bytes().decode("utf-8")
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not lines or tuple(lines[0]) != tuple(columns):
        raise ValueError(
            f"{path} is no manifest of a translated set; its first line must be {','.join(columns)}"
        )
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(line)} values; expected {len(columns)}")
    return lines[1:]


def read_description(folder: str | Path, format: str) -> dict[str, Any]:  # noqa: A002 - the key's own name
    """The content of a set's ``set.json``; ValueError where there is none of this format."""
    path = Path(folder) / "set.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no translated set: there is no set.json") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != format:
        raise ValueError(f"{path} does not describe a translated set (expected format {format!r})")
    return content


class TranslatedSet:
    """The folder of a set, opened to be begun or continued. ``columns`` are those of its manifest, which begin with ``file``.

    Raises ValueError where the folder holds something else: another set (the difference is named) or files
    that are no set.
    """

    def __init__(self, folder: Path, description: dict[str, Any], columns: Sequence[str]) -> None:
        self.folder, self.description = folder, description
        self.manifest = folder / "manifest.csv"
        if (folder / "set.json").is_file():
            there = read_description(folder, description["format"])
            for key, value in description.items():
                if there.get(key) != value:
                    raise ValueError(
                        f"{folder} holds another set: {key} is {there.get(key)!r} there and {value!r} here; choose another --out"
                    )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} exists and holds no translated set; choose another --out")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "set.json", description)
        if not self.manifest.exists():
            write_text(self.manifest, ",".join(columns) + "\n")
        cut_unfinished_line(self.manifest)
        self.listed = {line[0] for line in manifest_lines(folder, columns)}

    def missing(self, files: Sequence[str]) -> list[int]:
        """Positions of the ``files`` that are not finished."""
        return [
            k for k, file in enumerate(files) if file not in self.listed or not (self.folder / file).is_file()
        ]

    def add(self, rows: Sequence[Any], pictures: Tensor) -> None:
        """Write pictures uint8 (N, 3, H, W), and then their lines, named tuples of the columns."""
        for parent in {(self.folder / row.file).parent for row in rows}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(self._write, rows, pictures))
        new = [row for row in rows if row.file not in self.listed]
        if not new:
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(new)
        with open(self.manifest, "ab") as file:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())
        self.listed.update(row.file for row in new)

    def _write(self, row: Any, picture: Tensor) -> None:
        data = io.BytesIO()
        suffix = Path(row.file).suffix
        to_image(picture).save(data, "JPEG" if suffix == ".jpg" else "PNG", quality=JPEG_QUALITY)
        write_bytes(self.folder / row.file, data.getvalue(), sync=False)
