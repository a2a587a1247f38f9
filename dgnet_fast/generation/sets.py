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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dgnet_fast.data.pictures import NOBODY, Pictures
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.sharing import shared_out
from dgnet_fast.generation.codes import Swapper
from dgnet_fast.report.files import atomically
from dgnet_fast.report.grid import to_image
from dgnet_fast.report.progress import Progress

FORMAT = "dgnet_fast.generated.1"
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
SUFFIXES = {"png": ".png", "jpg": ".jpg"}
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
    text = path.read_bytes().decode("utf-8")
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
    head = next(lines, None)
    if head is None or tuple(head) != COLUMNS:
        raise ValueError(
            f"{path} is no manifest of a generated set; its first line must be {','.join(COLUMNS)}"
        )
    rows = []
    for number, line in enumerate(lines, start=2):
        if len(line) != len(COLUMNS):
            raise ValueError(f"{path}, line {number}: {len(line)} values; expected {len(COLUMNS)}")
        try:
            rows.append(Row._make([*line[:3], *map(int, line[3:10]), line[10]]))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def read_description(folder: str | Path) -> dict[str, Any]:
    """The content of a set's ``set.json``; ValueError where there is none."""
    path = Path(folder) / "set.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no generated set: there is no set.json") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a generated set (expected format {FORMAT!r})")
    return content


def describe(
    appearances: Pictures, structures: Pictures, pairs: np.ndarray, *, checkpoint: str, seed: int,
    size: tuple[int, int], suffix: str,
) -> dict[str, Any]:  # fmt: skip
    """What a set is, as ``set.json`` holds it. Equal descriptions mean equal files."""
    digest = hashlib.sha256(np.ascontiguousarray(pairs).tobytes())
    for source in (appearances, structures):
        digest.update("\0".join(source.split.names).encode())
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
    }


class GeneratedSet:
    """The folder of a set, opened to be begun or continued.

    Raises ValueError where the folder holds something else: another set (the difference is named) or files
    that are no set.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder, self.description = folder, description
        self.manifest = folder / "manifest.csv"
        if (folder / "set.json").is_file():
            there = read_description(folder)
            for key, value in description.items():
                if there.get(key) != value:
                    raise ValueError(
                        f"{folder} holds another set: {key} is {there.get(key)!r} there and {value!r} here; choose another --out"
                    )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} exists and holds no generated set; choose another --out")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "set.json", (json.dumps(description, indent=1) + "\n").encode())
        if not self.manifest.exists():
            _write(self.manifest, (",".join(COLUMNS) + "\n").encode())
        _cut_unfinished_line(self.manifest)
        self.listed = {row.file for row in read_manifest(folder)}

    def missing(self, files: Sequence[str]) -> list[int]:
        """Positions of the ``files`` that are not finished."""
        return [
            k for k, file in enumerate(files) if file not in self.listed or not (self.folder / file).is_file()
        ]

    def write(self, rows: Sequence[Row], pictures: Tensor) -> None:
        """Write pictures uint8 (N, 3, H, W); `record` them then."""
        for parent in {(self.folder / row.file).parent for row in rows}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for _ in pool.map(self._write, rows, pictures):
                pass

    def record(self, rows: Sequence[Row]) -> None:
        """Add the lines of pictures that are written."""
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

    def _write(self, row: Row, picture: Tensor) -> None:
        data = io.BytesIO()
        suffix = Path(row.file).suffix
        to_image(picture).save(data, "JPEG" if suffix == ".jpg" else "PNG", quality=JPEG_QUALITY)
        _write(self.folder / row.file, data.getvalue(), sync=False)


def _cut_unfinished_line(path: Path) -> None:
    """Remove an incomplete last line, which a killed program left; its picture is listed again."""
    with open(path, "r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _write(path: Path, data: bytes, *, sync: bool = True) -> None:
    with atomically(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def rows_of(
    appearances: Pictures, structures: Pictures, pairs: np.ndarray, *, seed: int, checkpoint: str, suffix: str
) -> list[Row]:
    """The rows of the manifest that a set of these pairs will have."""
    rows = []
    for k, (i, j) in enumerate(pairs.tolist()):
        one, other = appearances.split.names[i], structures.split.names[j]
        person = int(appearances.people[i])
        folder = "" if person == NOBODY else f"{person:04d}/"
        file = f"pictures/{folder}{k:07d}_{Path(one).stem}_in_{Path(other).stem}{suffix}"
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
    else.
    """
    if file_type not in SUFFIXES:
        raise ValueError(f"file type is {file_type!r}; allowed: {', '.join(SUFFIXES)}")
    config = swapper.model.config
    common = {"seed": seed, "checkpoint": checkpoint, "suffix": SUFFIXES[file_type]}
    size = config.picture_size
    description = describe(appearances, structures, pairs, size=size, **common)
    target = GeneratedSet(folder, description) if processes.is_first() else None
    processes.barrier()
    target = target or GeneratedSet(folder, description)
    rows = rows_of(appearances, structures, pairs, **common)
    todo = processes.agreed(target.missing([row.file for row in rows]))
    parts = [todo[first : first + batch] for first in range(0, len(todo), batch)]

    def make(part: list[int]) -> None:
        target.write([rows[k] for k in part], swapper(pairs[part]))

    done = len(rows) - len(todo)
    for part, _ in zip(parts, shared_out(make, parts), strict=True):
        if processes.is_first():
            target.record([rows[k] for k in part])
        done += len(part)
        if progress is not None:
            progress(done, len(rows))
    return len(todo), len(rows) - len(todo)
