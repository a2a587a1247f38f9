"""A searchable gallery on disk: a faiss index of features, with a list of their pictures."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dgnet_fast.config.shown import shown
from dgnet_fast.report.files import checksum, is_free, write_bytes, write_text
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.large_index import EXACT_UP_TO, LargeVectors, check_state, faiss_library

FORMAT = "dgnet_fast.index.2"
WITHOUT_CHECKSUM = "dgnet_fast.index.1"
"""The format before checksums were added; it is still read."""
LARGEST_HEADER = 1024
"""Bytes that a faiss file may have besides the vectors."""
LARGEST_DIMENSION = 65536
ENTRIES = "index.json"
FILES = ("vectors-*.faiss", "shard-*.faiss", "lists-*.faiss", "measured-*.npz")
"""Files with vectors in the folder of an index, of which `index.json` names those that count."""


@dataclass(frozen=True)
class Entry:
    """A picture of the gallery: its absolute path, and its identity and camera where they are known."""

    path: str
    identity: str | None = None
    camera: int | None = None


class PictureIndex:
    """Features of a gallery and the pictures they are of, searched by dot product: exactly (faiss IndexFlatIP) up to
    `EXACT_UP_TO` pictures, else in lists on the disk (`LargeVectors`), which `grow` makes in the folder of the index.

    The features are `Extractor.to_unit`'s, of unit length, so scores are at most 1. What the features were
    made by (`Extractor.fingerprint`), how they were normalised and the weight of their second half are stored
    and checked when an index is opened.

    On disk an index is a folder with `index.json` and the vectors' file that it names. `save` writes new
    files first and then replaces `index.json`, so an interrupted save leaves the old index, or none.
    """

    def __init__(self, extractor: Extractor, dimension: int) -> None:
        self.made_by = {
            "format": FORMAT,
            "fingerprint": extractor.fingerprint,
            "normalisation": "unit",
            "second_half_weight": extractor.second_half_weight,
            "dimension": dimension,
        }
        self.vectors: Any = faiss_library().IndexFlatIP(dimension)
        self.entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, vectors: Tensor, entries: list[Entry]) -> None:
        """Append pictures; those already in the index do not change. ``vectors``: float32 (N, dimension), of unit
        length. All together at most `EXACT_UP_TO`: use `grow` beyond.
        """
        assert len(self) + len(entries) <= EXACT_UP_TO or isinstance(self.vectors, LargeVectors)
        array = np.ascontiguousarray(vectors.numpy(), dtype=np.float32)
        assert array.shape == (len(entries), self.made_by["dimension"])
        assert np.allclose(np.linalg.norm(array, axis=1), 1, atol=1e-3)
        if isinstance(self.vectors, LargeVectors):
            self.vectors.add([array])
        else:
            self.vectors.add(array)
        self.entries += entries

    def grow(self, folder: Path, sources: Sequence[np.ndarray], entries: list[Entry]) -> None:
        """Append many pictures, in lists on the disk in ``folder``, where the index is or will be saved. ``sources``: arrays
        (n, dimension) of vectors of unit length, one after the other, which may be mapped files.
        """
        assert sum(map(len, sources)) == len(entries)
        if not isinstance(self.vectors, LargeVectors):
            exact = self.vectors
            before = [exact.reconstruct_n(0, exact.ntotal)] if exact.ntotal else []
            self.vectors = LargeVectors(folder, exact.d)
            self.vectors.train([*before, *sources])
            self.vectors.add(before)
        self.vectors.add(sources)
        self.entries += entries

    @property
    def recall(self) -> float:
        """Share of the 10 exact nearest neighbours that a search finds, measured on 100 of the pictures; 1 if exact."""
        return self.vectors.recall if isinstance(self.vectors, LargeVectors) else 1.0

    def search(self, vectors: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 (Q, K) and positions int64 (Q, K) of the ``count`` best pictures, or of all."""
        asked = np.ascontiguousarray(vectors.numpy(), dtype=np.float32)
        return self.vectors.search(asked, min(count, len(self)))

    def save(self, folder: Path) -> None:
        """Write the index to ``folder``. It replaces an index that is there; a new folder is an index when its list of
        pictures is written, last. Raises ValueError if something else is in the folder.

        Hold the folder's lock (`dgnet_fast.report.files.locked`) from `open`, or from `check_new_index`, to `save`, so
        that no other process saves an index there in between.
        """
        if not is_index(folder):
            check_new_index(folder)
        if isinstance(self.vectors, LargeVectors):
            assert self.vectors.folder == folder
            vectors: Any = self.vectors.state()
            content = {"vectors": vectors}
        else:
            data = faiss_library().serialize_index(self.vectors).tobytes()
            made = f"{zlib.crc32(data):08x}"
            name = (
                f"vectors-{len(self):08d}-{made}.faiss"  # never the name of other vectors that are read now
            )
            write_bytes(folder / name, data)
            content = {"vectors": name, "vectors_checksum": made}
        content = self.made_by | content | {"pictures": [asdict(entry) for entry in self.entries]}
        write_text(folder / ENTRIES, json.dumps(content | {"checksum": checksum(content)}, indent=0))
        self.clean(folder)

    def clean(self, folder: Path) -> None:
        """Remove files of vectors in ``folder`` that the list of pictures there does not name: of an earlier index, or of a
        program that was killed. Hold the folder's lock.
        """
        named = read_entries(folder)["vectors"]
        if isinstance(named, dict):
            kept = {named["trained"], named["measured"], *(shard["file"] for shard in named["shards"])}
        else:
            kept = {named}
        for old in [path for pattern in FILES for path in folder.glob(pattern)]:
            if old.name not in kept:
                old.unlink(missing_ok=True)

    @classmethod
    def open(cls, folder: Path, extractor: Extractor) -> PictureIndex:
        """The index in ``folder``. Raises ValueError if it is damaged, or was made with another model or other
        settings. Another process may save there meanwhile; then it is the index before or after.
        """
        content = read_entries(folder)
        while True:
            try:
                return cls._of(folder, content, extractor)
            except ValueError:
                newer = read_entries(folder)
                if newer == content:
                    raise
                content = newer  # the files that the earlier list names were replaced while they were read

    @classmethod
    def _of(cls, folder: Path, content: dict[str, Any], extractor: Extractor) -> PictureIndex:
        index = cls(extractor, content["dimension"])
        for name, ours in index.made_by.items():
            if name != "format" and content.get(name) != ours:
                what = {"fingerprint": "model", "second_half_weight": "second-half weight"}.get(name, name)
                raise ValueError(
                    f"{folder} was made with {what} {shown(content.get(name))}, and this one has {ours}; make a new index"
                )
        index.entries = [Entry(**entry) for entry in content["pictures"]]
        path = folder
        if isinstance(content["vectors"], dict):
            index.vectors = LargeVectors.of(folder, content["dimension"], content["vectors"])
        else:
            path = folder / content["vectors"]
            index.vectors = _exact(path, content)
        if index.vectors.ntotal != len(index.entries) or index.vectors.d != content["dimension"]:
            raise ValueError(
                f"{path} holds {index.vectors.ntotal} vectors of {index.vectors.d} numbers, and {folder / ENTRIES} lists "
                f"{len(index.entries)} pictures of {content['dimension']}; make a new index"
            )
        return index


def _exact(path: Path, content: dict[str, Any]) -> Any:
    """The vectors in the file that `index.json` names, ``content``. Raises ValueError if it is missing or damaged."""
    count = len(content["pictures"])
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} is missing or not a faiss index: {error.strerror}") from error
    if content["format"] == FORMAT and f"{zlib.crc32(data):08x}" != content["vectors_checksum"]:
        raise ValueError(f"{path} is damaged: its checksum is not that of its content; make a new index")
    expected = count * content["dimension"] * 4
    if data[:4] != b"IxFI" or not expected <= len(data) <= expected + LARGEST_HEADER:
        raise ValueError(
            f"{path} is missing or not a faiss index: {len(data)} bytes, and {path.parent / ENTRIES} lists {count} "
            f"pictures of {content['dimension']} numbers; make a new index"
        )
    # The vectors end the file. faiss itself would allocate whatever the header of a damaged file asks for.
    found = faiss_library().IndexFlatIP(content["dimension"])
    numbers = np.frombuffer(data, dtype="<f4", offset=len(data) - expected)
    found.add(numbers.reshape(count, content["dimension"]))
    return found


def is_index(folder: Path) -> bool:
    """Whether ``folder`` holds an index."""
    return (folder / ENTRIES).is_file()


def check_new_index(folder: Path, option: str = "") -> None:
    """Raise ValueError if anything but what an interrupted first save left is in ``folder``."""
    if not is_free(folder, FILES):
        raise ValueError(f"{option} {folder} exists; give the name of a new folder".strip())


def read_entries(folder: Path) -> dict[str, Any]:
    """The content of the `index.json` of an index. Raises ValueError if the file is anything else."""
    path = folder / ENTRIES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable: {error}") from error
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, WITHOUT_CHECKSUM):
        raise ValueError(f"{path} is not an index of dgnet_fast (expected format {FORMAT!r})")
    if content["format"] == FORMAT and content.get("checksum") != checksum(content):
        raise ValueError(f"{path} is damaged: its checksum is not that of its content; make a new index")
    name, dimension, pictures = (content.get(key) for key in ("vectors", "dimension", "pictures"))
    if isinstance(name, dict):
        check_state(name, path)
    elif not isinstance(name, str) or not re.fullmatch(r"vectors-\d{8,}(-[0-9a-f]{8})?\.faiss", name):
        raise ValueError(f"{path}: vectors is {shown(name)}; expected the name of a file beside it")
    if type(dimension) is not int or not 1 <= dimension <= LARGEST_DIMENSION:
        raise ValueError(
            f"{path}: dimension is {shown(dimension)}; expected a whole number from 1 to {LARGEST_DIMENSION}"
        )
    if not isinstance(pictures, list):
        raise ValueError(f"{path}: pictures is {shown(pictures)}; expected a list")
    for number, entry in enumerate(pictures):
        if (
            not isinstance(entry, dict)
            or not {"path"} <= entry.keys() <= {"path", "identity", "camera"}
            or not isinstance(entry["path"], str)
            or not isinstance(entry.get("identity"), (str, type(None)))
            or type(entry.get("camera")) not in (int, type(None))
        ):
            raise ValueError(f"{path}: picture {number} is {shown(entry)}; expected path, identity, camera")
    return content
