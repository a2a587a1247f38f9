"""An extraction of features that can be continued after any interruption, by any number of processes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.data.chunks import CHUNK, batches_of
from dgnet_fast.data.files import unlabelled
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.sharing import shared_out
from dgnet_fast.report.files import LOCK, clean_temporaries, is_free, write_bytes, write_json
from dgnet_fast.report.progress import Progress
from dgnet_fast.retrieval.extractor import Extractor

logger = logging.getLogger(__name__)

FORMAT = "dgnet_fast.parts.2"
ABOUT = "parts.json"
FILES = ("part-*.npy", "unit-*.npy")
"""Files of an extraction beside `ABOUT`: features, and what the caller makes of them."""
SMALL = 50 * CHUNK
"""Pictures up to which a part is one batch; beyond, it is a chunk, so that there are not too many files."""


def extract_in_parts(
    extractor: Extractor,
    paths: list[Path],
    folder: Path,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Features of picture files, float32 (N, F) on the CPU, as `Extractor.files` gives them, bit by bit, by way of
    `extract_parts`.
    """
    files = extract_parts(extractor, paths, folder, progress=progress, overwrite=overwrite)
    return torch.from_numpy(np.concatenate([read_rows(file) for file in files]))


def write_rows(file: Path, rows: np.ndarray) -> None:
    """Write an array to a .npy file that ends with its CRC-32, `atomically`. It goes by way of the memory, because NumPy
    says nothing when a full disk cuts short what it writes to a file itself.
    """
    made = io.BytesIO()
    np.save(made, rows)
    write_bytes(file, made.getvalue() + _mark(zlib.crc32(made.getbuffer())), sync=False)


def read_rows(file: Path) -> np.ndarray:
    """The array of a file that `write_rows` wrote. Raises ValueError if it is damaged."""
    data = file.read_bytes()
    end = len(data) - len(_mark(0))
    if end <= 0 or data[end:] != _mark(zlib.crc32(memoryview(data)[:end])):
        raise ValueError(f"{file} is damaged: its checksum is not that of its content; remove it")
    return np.load(io.BytesIO(data))


def _mark(crc: int) -> bytes:
    return f"{crc:08x}".encode()


def _is_whole(file: Path) -> bool:
    """Whether a part is there. One that is damaged is made again, which the log says."""
    if not file.is_file():
        return False
    try:
        read_rows(file)
    except ValueError:
        logger.warning(f"{file} is damaged: its features are computed again")
        return False
    return True


def extract_parts(
    extractor: Extractor,
    paths: list[Path],
    folder: Path,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """The features of picture files, in order, in files float32 (n, F) of at most a chunk of pictures each (`read_rows`).

    Each part is written to ``folder`` when it is done. If the program is killed, the same call goes on from the parts that
    are there. Where several processes are one run, all of them call this and each computes a share.
    The caller removes the folder with `remove` when the features are safe. With ``overwrite`` parts of another extraction
    make room.

    Raises:
        ValueError: no pictures, an unreadable picture, the folder holds parts of another extraction, or a process has
            another network or other pictures.
    """
    split = unlabelled(paths)
    if not len(split):
        raise ValueError("no pictures to extract features from")
    if processes.size() > 1:
        extractor.check_together(split)
    about = _about(extractor, paths)
    if processes.is_first():
        _open(folder, about, overwrite)
    processes.barrier()
    count = len(split)
    ends = batches_of(count, extractor.batch if count <= SMALL else CHUNK)
    files = [folder / f"part-{first:09d}.npy" for first, _ in ends]
    missing = processes.agreed([k for k, file in enumerate(files) if not _is_whole(file)])

    def make(k: int) -> None:
        write_rows(files[k], extractor.rows(split, *ends[k]).numpy())

    done = count - sum(ends[k][1] - ends[k][0] for k in missing)
    for k, _ in zip(missing, shared_out(make, missing), strict=True):
        done += ends[k][1] - ends[k][0]
        if progress is not None:
            progress(done, count)
    return files


def remove(folder: Path) -> None:
    """Remove the parts of a finished extraction, if there are any. A folder of this name that holds no parts, and files in
    it that are none, stay.
    """
    if not (folder / ABOUT).is_file():
        return
    for file in _parts_in(folder):
        file.unlink(missing_ok=True)
    clean_temporaries(folder)
    (folder / ABOUT).unlink(missing_ok=True)  # last: a folder without it is no longer ours
    if set(os.listdir(folder)) <= {LOCK}:  # the caller's
        (folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _parts_in(folder: Path) -> Iterator[Path]:
    for pattern in FILES:
        yield from folder.glob(pattern)


def _about(extractor: Extractor, paths: list[Path]) -> dict[str, str | int]:
    """What the parts depend on. A picture counts as the same if its file has the same size and time."""
    digest = hashlib.sha256()
    for path in paths:
        known = os.stat(path)
        digest.update(f"{path}\0{known.st_size}\0{known.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return {
        "format": FORMAT,
        "model": extractor.fingerprint,
        "pictures": digest.hexdigest()[:16],
        "count": len(paths),
        "batch": extractor.batch,
    }


def _open(folder: Path, about: dict[str, str | int], overwrite: bool) -> None:
    file = folder / ABOUT
    if not file.is_file():
        if not is_free(folder):
            raise ValueError(
                f"{folder} is in the way: it is where the parts of an extraction are kept; move it away"
            )
        write_json(file, about)
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        there = {}
    if there != about and (overwrite or not any(folder.glob("part-*.npy"))):  # or none of its parts was done
        for old in _parts_in(folder):
            old.unlink()
        write_json(file, about)
        return
    for name, ours in about.items():
        if not isinstance(there, dict) or there.get(name) != ours:
            raise ValueError(
                f"{folder} holds the parts of another extraction that did not end ({name} differs); remove the folder, "
                "give another --out, or --overwrite"
            )
