"""Vectors of a large gallery, searched in lists on the disk: faiss's inverted lists (IVF) of 8-bit numbers (SQ8).

An exact search reads 4 bytes a number of every picture for each query. Here the vectors are sorted into lists around
centroids, which are trained on a sample, each number takes a byte, and a query looks into the ``probed`` nearest lists. The
lists are in files of at most `SHARD` vectors, which are mapped and not read: memory stays bounded, both when vectors are
added and when they are searched. What is lost against the exact search is measured when vectors are added, and kept.
"""

from __future__ import annotations

import importlib
import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgnet_fast.config.extras import need
from dgnet_fast.config.shown import shown
from dgnet_fast.report.files import atomically, write_bytes

EXACT_UP_TO = 200_000
"""Pictures up to which a gallery is searched exactly: 0.8 GB of 1024 float32 each."""
SHARD = 1_000_000
"""Vectors in a file of lists: 1 GB in memory while it is filled."""
SAMPLED, MOST_SAMPLED = 256, 650_000
"""Vectors a centroid that train it, and all of them: 2.7 GB of 1024 float32. Pictures of people that no sampled vector shows
lie scattered over the lists: of 200 000 vectors of 10 000 people, a search of a 64th of 512 lists found 76 % of the nearest
neighbours with 64 vectors a centroid, and 95 % with 200. faiss wants at least 39.
"""
MOST_LISTS = 16_384
QUERIES, NEIGHBOURS = 100, 10
"""Vectors drawn as queries for the measured recall, and how many neighbours of each count."""
PROBES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
WANTED = 0.98
"""Recall at which no more lists are probed."""


def faiss_library() -> Any:
    """The faiss module. Raises ValueError, in one line, if it is not installed."""
    need("faiss", "search", "searching")
    return importlib.import_module("faiss")


def lists_for(count: int) -> int:
    """Number of lists: the power of two next to 2 √count, and at most `MOST_LISTS`."""
    return int(min(MOST_LISTS, 2 ** round(np.log2(2 * np.sqrt(count)))))


def check_state(state: dict[str, Any], source: Path) -> None:
    """Raise ValueError if ``state``, read from the file ``source``, is not what `LargeVectors.state` gives."""
    patterns = {"trained": r"lists-\d+\.faiss", "measured": r"measured-\d{9,}\.npz"}
    for key, pattern in patterns.items():
        if not isinstance(state.get(key), str) or not re.fullmatch(pattern, state[key]):
            raise ValueError(
                f"{source}: {key} is {shown(state.get(key))}; expected the name of a file beside it"
            )
    if state.get("probed") not in PROBES or type(state.get("recall")) is not float:
        raise ValueError(
            f"{source}: probed and recall are {shown(state.get('probed'))} and {shown(state.get('recall'))}; "
            f"expected one of {', '.join(map(str, PROBES))} and a number"
        )
    shards = state.get("shards")
    for shard in shards if isinstance(shards, list) else [shards]:
        if (
            not isinstance(shard, dict)
            or not isinstance(shard.get("file"), str)
            or not re.fullmatch(r"shard-\d{5,}-\d{8,}\.faiss", shard["file"])
            or type(shard.get("count")) is not int
            or not _is_checksum(shard.get("checksum"))
        ):
            raise ValueError(
                f"{source}: a file of vectors is {shown(shard)}; expected its name, its count and its checksum"
            )
    for key in ("trained_checksum", "measured_checksum"):
        if not _is_checksum(state.get(key)):
            raise ValueError(f"{source}: {key} is {shown(state.get(key))}; expected 8 hexadecimal digits")


def _is_checksum(value: Any) -> bool:
    """Whether it is one, or None: that of a file of an earlier version."""
    return value is None or (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{8}", value) is not None)


def _write(index: Any, path: Path) -> str:
    """Write a faiss index `atomically`; returns its CRC-32. The bytes go by way of Python, because faiss says nothing when
    a full disk cuts short what it writes to a file itself.
    """
    faiss, crc = faiss_library(), 0
    with atomically(path) as temporary, open(temporary, "wb") as file:

        def written(data: bytes) -> int:
            nonlocal crc
            crc = zlib.crc32(data, crc)
            return file.write(data)

        faiss.write_index(index, faiss.PyCallbackIOWriter(written))
        file.flush()
    return f"{crc:08x}"


def _verify(path: Path, checksum: str | None) -> None:
    """Raise ValueError if a file is not what was written; about 1 GB/s."""
    if checksum is None:
        return
    crc = 0
    with open(path, "rb") as file:
        while part := file.read(2**22):
            crc = zlib.crc32(part, crc)
    if f"{crc:08x}" != checksum:
        raise ValueError(f"the checksum of {path.name} is not that of its content")


class LargeVectors:
    """Vectors float32 (N, d) of unit length in the folder of an index, in shards of lists.

    `train` first, then `add`; `search` gives scores (dot products, of the rounded vectors) and positions. Only what
    `state` describes counts: an interrupted `add` leaves files that nobody reads and that the next one replaces.
    """

    def __init__(self, folder: Path, dimension: int) -> None:
        self.folder, self.d = folder, dimension
        self.shards: list[dict[str, Any]] = []
        self.trained = ""
        self.trained_checksum: str | None = None
        self.probed, self.recall = PROBES[0], float("nan")
        self._queries = np.empty((0, dimension), np.float32)
        self._best = np.empty((0, NEIGHBOURS + 1), np.float32)
        self._places = np.empty((0, NEIGHBOURS + 1), np.int64)
        self._open: dict[str, Any] = {}

    @classmethod
    def of(cls, folder: Path, dimension: int, state: dict[str, Any]) -> LargeVectors:
        """Those that `state` describes. Raises ValueError where files are missing or damaged."""
        made = cls(folder, dimension)
        made.shards, made.trained = list(state["shards"]), state["trained"]
        made.trained_checksum = state.get("trained_checksum")
        made.probed, made.recall = state["probed"], state["recall"]
        try:
            _verify(folder / state["measured"], state.get("measured_checksum"))
            with np.load(folder / state["measured"]) as known:
                made._queries, made._best, made._places = known["queries"], known["best"], known["places"]
            for shard in made.shards:
                _verify(folder / shard["file"], shard.get("checksum"))
                if made._shard(shard["file"]).ntotal != shard["count"]:
                    raise RuntimeError("another number of vectors")
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise ValueError(
                f"{folder} has a missing or damaged file of vectors ({error}); make a new index"
            ) from error
        return made

    @property
    def ntotal(self) -> int:
        return sum(shard["count"] for shard in self.shards)

    def train(self, sources: Sequence[np.ndarray], seed: int = 0) -> None:
        """Find the centroids from a sample of all sources, arrays (n, d) of unit vectors that may be mapped files."""
        faiss = faiss_library()
        sizes = np.array([len(one) for one in sources])
        count = int(sizes.sum())
        lists = lists_for(count)
        rng = np.random.default_rng(seed)
        places = np.sort(rng.choice(count, min(count, lists * SAMPLED, MOST_SAMPLED), replace=False))
        sample = _rows(sources, places)
        index = faiss.index_factory(self.d, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.max_points_per_centroid, index.cp.seed = 8, SAMPLED, seed + 1
        index.train(sample)
        self.trained = f"lists-{lists}.faiss"
        self.trained_checksum = _write(index, self.folder / self.trained)
        self._queries = _rows(sources, np.sort(rng.choice(count, min(count, QUERIES), replace=False)))
        self._best = np.full((len(self._queries), NEIGHBOURS + 1), -np.inf, np.float32)
        self._places = np.full(self._best.shape, -1)

    def add(self, sources: Sequence[np.ndarray]) -> None:
        """Append vectors, and measure the recall anew."""
        faiss, index, count, number = faiss_library(), None, 0, len(self.shards)
        total = self.ntotal
        if self.shards and self.shards[-1]["count"] < SHARD:
            number -= 1
            last = self.shards.pop()
            index, count = faiss.read_index(str(self.folder / last["file"])), last["count"]
        for source in sources:
            first = 0
            while first < len(source):
                if index is None:
                    _verify(self.folder / self.trained, self.trained_checksum)
                    index, count = faiss.read_index(str(self.folder / self.trained)), 0
                some = np.ascontiguousarray(
                    source[first : first + min(SHARD - count, 50_000)], dtype=np.float32
                )
                index.add(some)
                self._note(some, total)
                first, count, total = first + len(some), count + len(some), total + len(some)
                if count == SHARD:
                    self._close(index, number, count)
                    index, number = None, number + 1
        if index is not None:
            self._close(index, number, count)
        self._measure()

    def search(self, asked: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 (Q, K) and positions int64 (Q, K) of the best pictures found, best first. Where the probed lists
        hold fewer than K, the last positions are -1.
        """
        scores, places, offset = [], [], 0
        for shard in self.shards:
            index = self._shard(shard["file"])
            index.nprobe = self.probed
            found, where = index.search(asked, count)
            scores.append(found)
            places.append(np.where(where < 0, -1, where + offset))
            offset += shard["count"]
        value, place = np.concatenate(scores, axis=1), np.concatenate(places, axis=1)
        order = np.argsort(np.where(place < 0, np.inf, -value), axis=1, kind="stable")[:, :count]
        return np.take_along_axis(value, order, 1), np.take_along_axis(place, order, 1)

    def state(self) -> dict[str, Any]:
        """What `of` needs, for a JSON file; writes the measured queries beside it."""
        measured = f"measured-{self.ntotal:09d}.npz"
        content = io.BytesIO()
        np.savez(content, queries=self._queries, best=self._best, places=self._places)
        write_bytes(self.folder / measured, content.getvalue())
        return {
            "shards": self.shards,
            "trained": self.trained,
            "trained_checksum": self.trained_checksum,
            "probed": self.probed,
            "recall": self.recall,
            "measured": measured,
            "measured_checksum": f"{zlib.crc32(content.getbuffer()):08x}",
        }

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            faiss = faiss_library()
            # mapped: the lists that a query probes are read, and no more
            self._open[name] = faiss.read_index(
                str(self.folder / name), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
            )
        return self._open[name]

    def _close(self, index: Any, number: int, count: int) -> None:
        name = f"shard-{number:05d}-{count:08d}.faiss"
        checksum = _write(index, self.folder / name)
        self._open.pop(name, None)
        self.shards.append({"file": name, "count": count, "checksum": checksum})

    def _note(self, vectors: np.ndarray, first: int) -> None:
        """Keep the queries' exact nearest vectors so far; ``first`` is the position of the first of these."""
        scores = np.concatenate([self._best, self._queries @ vectors.T], axis=1)
        here = np.broadcast_to(np.arange(first, first + len(vectors)), (len(self._queries), len(vectors)))
        places = np.concatenate([self._places, here], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : NEIGHBOURS + 1]
        self._best, self._places = np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)

    def _measure(self) -> None:
        """Probe as many lists as the wanted recall takes."""
        for probed in PROBES:
            if self.recall_at(probed) >= WANTED:
                return

    def recall_at(self, probed: int) -> float:
        """The recall that was measured when vectors were added, with so many lists probed from here on. A query is one of
        the vectors; that it finds itself, the nearest, does not count.
        """
        self.probed = probed
        _, found = self.search(self._queries, NEIGHBOURS + 1)
        hits = [np.isin(exact[1:], ours).mean() for exact, ours in zip(self._places, found, strict=True)]
        self.recall = float(np.mean(hits))
        return self.recall


def _rows(sources: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """Rows of several arrays as of one, float32; ``places`` are sorted."""
    rows, start = [], 0
    for source in sources:
        mine = places[(places >= start) & (places < start + len(source))] - start
        if len(mine):
            rows.append(np.asarray(source[mine], dtype=np.float32))
        start += len(source)
    return np.concatenate(rows)
