"""A folder of generated pictures with its manifest. It is written in batches and can be continued after any
interruption.

    DIR/set.json       what the set is: checkpoint, sources, seed, size; a different set is refused in this folder
    DIR/manifest.csv   one line for each picture, added after the picture itself was written
    DIR/pictures/…     the pictures; if the people are known, in one folder for each person who gives the appearance

A picture is written under a temporary name and then renamed, and its line is added after that. If the program is
killed, all pictures and lines in the folder are complete. Nothing is ever deleted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dgnet_fast.config.choices import FILE_TYPES
from dgnet_fast.config.shown import one_line, shown
from dgnet_fast.data.pictures import NOBODY, Pictures
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.sharing import shared_out
from dgnet_fast.generation.codes import Swapper
from dgnet_fast.report.files import (
    LOCK,
    checksum,
    clean_temporaries,
    locked,
    naming,
    write_bytes,
    write_json,
    write_text,
)
from dgnet_fast.report.grid import to_image
from dgnet_fast.report.progress import Progress

FORMAT = "dgnet_fast.generated.2"
WITHOUT_CHECKSUM = "dgnet_fast.generated.1"
"""The format before the checksum and the batch were added; it is still read, and continued with any batch."""
KINDS = {
    "checkpoint": str,
    "appearances": str,
    "structures": str,
    "count": int,
    "seed": int,
    "height": int,
    "width": int,
}
LONGEST_STEM = 60
"""Bytes of a source's name within the name of a generated picture; longer ones are cut and end with a hash."""
COLUMNS = (
    "file",
    "appearance",
    "structure",
    "appearance_id",
    "structure_id",
    "appearance_camera",
    "structure_camera",
    "appearance_index",
    "structure_index",
    "seed",
    "checkpoint",
)
JPEG_QUALITY = 95


class Row(NamedTuple):
    """One line of a manifest: the picture's file below the set's folder, and where it comes from.

    Names of the sources' pictures, their identities (-1 unknown) and cameras (-1 unknown), their places in the
    sources, the set's seed (of the pairs), and the fingerprint of the weights.
    """

    file: str
    appearance: str
    structure: str
    appearance_id: int
    structure_id: int
    appearance_camera: int
    structure_camera: int
    appearance_index: int
    structure_index: int
    seed: int
    checkpoint: str


def read_manifest(folder: str | Path) -> list[Row]:
    """The finished pictures of a generated set, in the order in which they were made.

    Raises ValueError for a folder that holds no set, or a manifest that is damaged (an unfinished last line,
    left by a kill, is passed over).
    """
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        raise ValueError(f"{folder} holds no generated set: there is no manifest.csv")
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
    number = 1
    try:
        head = next(lines, None)
        if head is None or tuple(head) != COLUMNS:
            raise ValueError(
                f"{path} is no manifest of a generated set; its first line must be {','.join(COLUMNS)}"
            )
        rows = []
        for number, line in enumerate(lines, start=2):
            if len(line) != len(COLUMNS):
                raise ValueError(f"{path}, line {number}: {len(line)} values; expected {len(COLUMNS)}")
            for name, value in zip(COLUMNS[3:10], line[3:10], strict=True):
                if not re.fullmatch(r"-?[0-9]{1,18}", value):
                    raise ValueError(
                        f"{path}, line {number}: {name} is {shown(value)}; expected a whole number"
                    )
            rows.append(Row._make([*line[:3], *map(int, line[3:10]), line[10]]))
    except csv.Error as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def read_description(folder: str | Path) -> dict[str, Any]:
    """The content of a set's ``set.json``; ValueError where there is none."""
    path = Path(folder) / "set.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no generated set: there is no set.json") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, WITHOUT_CHECKSUM):
        raise ValueError(f"{path} does not describe a generated set (expected format {FORMAT!r})")
    if content["format"] == FORMAT and content.get("checksum") != checksum(content):
        raise ValueError(f"{path} is damaged: its checksum is not that of its content")
    for name, kind in KINDS.items():
        value = content.get(name)
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value <= 2**62):
            raise ValueError(f"{path}: {name} is {shown(value)}; expected {kind.__name__}")
    return content


def describe(
    appearances: Pictures, structures: Pictures, pairs: np.ndarray, *, checkpoint: str, seed: int,
    size: tuple[int, int], suffix: str, batch: int,
) -> dict[str, Any]:  # fmt: skip
    """What a set is, as ``set.json`` holds it. Equal descriptions mean equal files."""
    digest = hashlib.sha256(np.ascontiguousarray(pairs).tobytes())
    for source in (appearances, structures):
        digest.update("\0".join(source.split.names).encode("utf-8", "surrogateescape"))
    return {
        "format": FORMAT,
        "checkpoint": checkpoint,
        "appearances": appearances.label,
        "structures": structures.label,
        "count": len(pairs),
        "seed": seed,
        "height": size[0],
        "width": size[1],
        "file_type": suffix,
        "pairs": digest.hexdigest()[:16],
        "batch": min(batch, len(pairs)),
    }


class GeneratedSet:
    """The folder of a set, opened to be begun or continued.

    Raises ValueError where the folder holds something else: another set (the difference is named) or files
    that are no set.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder, self.description = folder, description
        if folder.is_dir():
            clean_temporaries(folder)
        self.manifest = folder / "manifest.csv"
        if (folder / "set.json").is_file():
            there = read_description(folder)
            self.description = description = description | {"batch": there.get("batch", description["batch"])}
            for key, value in description.items():
                if key not in ("format", "batch") and there.get(key) != value:
                    raise ValueError(
                        f"{folder} holds another set: {key} is {there.get(key)!r} there and {value!r} here; choose another --out"
                    )
        elif folder.exists() and (not folder.is_dir() or any(p.name != LOCK for p in folder.iterdir())):
            raise ValueError(f"{folder} exists and holds no generated set; choose another --out")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "set.json", description | {"checksum": checksum(description)})
        if not self.manifest.exists():
            write_text(self.manifest, ",".join(COLUMNS) + "\n")
        cut_unfinished_line(self.manifest)
        self.rows = {row.file: row for row in read_manifest(folder)}
        self.listed = set(self.rows)

    def missing(self, rows: Sequence[Row]) -> list[int]:
        """Positions of the ``rows`` whose pictures are not finished. Raises ValueError if the manifest says something
        else of one that is.
        """
        for row in rows:
            if (there := self.rows.get(row.file, row)) != row:
                raise ValueError(f"{self.manifest} is damaged: it says {shown(there)}, expected {shown(row)}")
        return [
            k
            for k, row in enumerate(rows)
            if row.file not in self.listed or not (self.folder / row.file).is_file()
        ]

    def write(self, rows: Sequence[Row], pictures: Tensor) -> None:
        """Write pictures uint8 (N, 3, H, W); `record` them then."""
        write_pictures(self.folder, rows, pictures)

    def record(self, rows: Sequence[Row]) -> None:
        """Add the lines of pictures that are written."""
        new = [row for row in rows if row.file not in self.listed]
        if not new:
            return
        append_rows(self.manifest, new)
        self.listed.update(row.file for row in new)


def write_pictures(folder: Path, rows: Sequence[Any], pictures: Tensor) -> None:
    """Write pictures uint8 (N, 3, H, W) as the ``file`` of each row says, within ``folder``; the type is its ending's."""

    def write(row: Any, picture: Tensor) -> None:
        data = io.BytesIO()
        suffix = Path(row.file).suffix
        to_image(picture).save(data, "JPEG" if suffix == ".jpg" else "PNG", quality=JPEG_QUALITY)
        write_bytes(folder / row.file, data.getvalue(), sync=False)

    for parent in {(folder / row.file).parent for row in rows}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(write, rows, pictures):
            pass


def append_rows(manifest: Path, rows: Sequence[Any]) -> None:
    """Add a line for each row, a tuple, to a manifest; the lines are on the disk when it returns."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with naming(manifest), open(manifest, "ab") as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())


def cut_unfinished_line(path: Path) -> None:
    """Remove an incomplete last line, which a killed program left; its picture is listed again."""
    with open(path, "r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def stem_of(name: str) -> str:
    """The stem of a picture's name as a part of a file name of any file system: no control characters, and not longer
    than `LONGEST_STEM`.
    """
    stem = one_line(Path(name).stem)
    data = stem.encode()
    if len(data) <= LONGEST_STEM:
        return stem
    cut = data[: LONGEST_STEM - 9].decode(errors="ignore")
    return f"{cut}-{hashlib.sha256(data).hexdigest()[:8]}"


def rows_of(
    appearances: Pictures, structures: Pictures, pairs: np.ndarray, *, seed: int, checkpoint: str, suffix: str
) -> list[Row]:
    """The rows of the manifest that a set of these pairs will have."""
    rows = []
    for k, (i, j) in enumerate(pairs.tolist()):
        one, other = one_line(appearances.split.names[i]), one_line(structures.split.names[j])
        person = int(appearances.people[i])
        folder = "" if person == NOBODY else f"{person:04d}/"
        file = f"pictures/{folder}{k:07d}_{stem_of(one)}_in_{stem_of(other)}{suffix}"
        cameras = int(appearances.split.cameras[i]), int(structures.split.cameras[j])
        people = person, int(structures.people[j])
        rows.append(Row(file, one, other, *people, *cameras, i, j, seed, checkpoint))
    return rows


def write_set(
    folder: Path,
    swapper: Swapper,
    appearances: Pictures,
    structures: Pictures,
    pairs: np.ndarray,
    *,
    seed: int,
    checkpoint: str,
    file_type: str = "png",
    batch: int = 32,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Generate ``pairs`` (int64 (K, 2) of appearance and structure) into ``folder``. Returns the number of pictures
    that were made now, and of those that were there before.

    With the same arguments again it makes only the missing pictures. Where several processes are one run, all of them
    call this, each makes a share, and the first one writes the manifest. Raises ValueError if the folder holds anything
    else, or if a process would make another set.
    """
    if file_type not in FILE_TYPES:
        raise ValueError(f"file type is {file_type!r}; allowed: {', '.join(FILE_TYPES)}")
    config = swapper.model.config
    common = {"seed": seed, "checkpoint": checkpoint, "suffix": FILE_TYPES[file_type]}
    size = config.picture_size
    with processes.held_by_first(locked(folder)):
        described = describe(appearances, structures, pairs, size=size, batch=batch, **common)
        processes.check_same({f"the set's {name}": value for name, value in described.items()})
        target = processes.first_of_all(lambda: GeneratedSet(folder, described))
        # All passes have the batch size of the first call: another one can change a pixel by 1
        batch = target.description["batch"]
        rows = rows_of(appearances, structures, pairs, **common)
        todo = processes.agreed(processes.first_of_all(lambda: target.missing(rows)))
        parts = [todo[first : first + batch] for first in range(0, len(todo), batch)]

        def make(part: list[int]) -> None:
            filled = part + part[-1:] * (batch - len(part))
            target.write([rows[k] for k in part], swapper(pairs[filled])[: len(part)])

        done = len(rows) - len(todo)
        for part, _ in zip(parts, shared_out(make, parts), strict=True):
            if processes.is_first():
                target.record([rows[k] for k in part])
            done += len(part)
            if progress is not None:
                progress(done, len(rows))
    return len(todo), len(rows) - len(todo)
