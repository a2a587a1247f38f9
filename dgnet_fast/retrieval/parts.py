"""An extraction of features that can be continued after any interruption, by any number of processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.data.chunks import CHUNK, batches_of
from dgnet_fast.data.files import unlabelled
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.sharing import shared_out
from dgnet_fast.report.files import LOCK, atomically, is_free, write_json
from dgnet_fast.report.progress import Progress
from dgnet_fast.retrieval.extractor import Extractor

FORMAT = "dgnet_fast.parts.1"
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
    return torch.from_numpy(np.concatenate([np.load(file) for file in files]))


def extract_parts(
    extractor: Extractor,
    paths: list[Path],
    folder: Path,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """The features of picture files, in order, in .npy files float32 (n, F) of at most a chunk of pictures each.

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
    missing = processes.agreed([k for k, file in enumerate(files) if not file.is_file()])

    def make(k: int) -> None:
        rows = extractor.rows(split, *ends[k]).numpy()
        with atomically(files[k], sync=False) as temporary:
            np.save(temporary, rows)

    done = count - sum(ends[k][1] - ends[k][0] for k in missing)
    for k, _ in zip(missing, shared_out(make, missing), strict=True):
        done += ends[k][1] - ends[k][0]
        if progress is not None:
            progress(done, count)
    return files


def remove(folder: Path) -> None:
    """Remove the parts of a finished extraction."""
    shutil.rmtree(folder, ignore_errors=True)


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
    file = folder / "parts.json"
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
        for old in folder.iterdir():
            if old.name != LOCK:  # which the caller may hold
                old.unlink()
        write_json(file, about)
        return
    for name, ours in about.items():
        if not isinstance(there, dict) or there.get(name) != ours:
            raise ValueError(
                f"{folder} holds the parts of another extraction that did not end ({name} differs); remove the folder, "
                "give another --out, or --overwrite"
            )
