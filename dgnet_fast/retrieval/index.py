"""A searchable gallery on disk: a faiss index of features, with a list of their pictures."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dgnet_fast.config.extras import need
from dgnet_fast.report.files import atomically
from dgnet_fast.retrieval.extractor import Extractor

FORMAT = "dgnet_fast.index.1"
ENTRIES = "index.json"


def faiss_library() -> Any:
    """The faiss module. Raises ValueError, in one line, if it is not installed."""
    need("faiss", "search", "searching")
    return importlib.import_module("faiss")


@dataclass(frozen=True)
class Entry:
    """A picture of the gallery: its absolute path, and its identity and camera where they are known."""

    path: str
    identity: str | None = None
    camera: int | None = None


class PictureIndex:
    """Features of a gallery and the pictures they are of, searched exactly by dot product (faiss IndexFlatIP).

    The features are `Extractor.to_unit`'s, of unit length, so scores are at most 1. What the features were
    made by (`Extractor.fingerprint`), how they were normalised and the weight of their second half are stored
    and checked when an index is opened.

    On disk an index is a folder with `index.json` and the vectors' file that it names. `save` writes new
    files first and then replaces `index.json`, so an interrupted save leaves the old index.
    """

    def __init__(self, extractor: Extractor, dimension: int) -> None:
        self.made_by = {
            "format": FORMAT,
            "fingerprint": extractor.fingerprint,
            "normalisation": "unit",
            "second_half_weight": extractor.second_half_weight,
            "dimension": dimension,
        }
        self.vectors = faiss_library().IndexFlatIP(dimension)
        self.entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, vectors: Tensor, entries: list[Entry]) -> None:
        """Append pictures; those already in the index do not change. ``vectors``: float32 (N, dimension), of unit
        length.
        """
        array = np.ascontiguousarray(vectors.numpy(), dtype=np.float32)
        assert array.shape == (len(entries), self.made_by["dimension"])
        assert np.allclose(np.linalg.norm(array, axis=1), 1, atol=1e-3)
        self.vectors.add(array)
        self.entries += entries

    def search(self, vectors: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 (Q, K) and positions int64 (Q, K) of the ``count`` best pictures, or of all."""
        asked = np.ascontiguousarray(vectors.numpy(), dtype=np.float32)
        return self.vectors.search(asked, min(count, len(self)))

    def save(self, folder: Path) -> None:
        """Write the index to ``folder``. It replaces an index that is there."""
        name = f"vectors-{len(self):08d}.faiss"
        with atomically(folder / name) as temporary:
            faiss_library().write_index(self.vectors, str(temporary))
        content = self.made_by | {"vectors": name, "pictures": [asdict(entry) for entry in self.entries]}
        with atomically(folder / ENTRIES) as temporary:
            temporary.write_text(json.dumps(content, indent=0), encoding="utf-8")
        for old in folder.glob("vectors-*.faiss"):
            if old.name != name:
                old.unlink(missing_ok=True)

    @classmethod
    def open(cls, folder: Path, extractor: Extractor) -> PictureIndex:
        """The index in ``folder``. Raises ValueError if it is damaged, or was made with another model or other
        settings.
        """
        content = read_entries(folder)
        index = cls(extractor, content["dimension"])
        for name, ours in index.made_by.items():
            if content.get(name) != ours:
                what = {"fingerprint": "model", "second_half_weight": "second-half weight"}.get(name, name)
                raise ValueError(
                    f"{folder} was made with {what} {content.get(name)}, and this one has {ours}; make a new index"
                )
        faiss = faiss_library()
        path = folder / content["vectors"]
        try:
            index.vectors = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is missing or not a faiss index") from error
        index.entries = [Entry(**entry) for entry in content["pictures"]]
        if index.vectors.ntotal != len(index.entries) or index.vectors.d != content["dimension"]:
            raise ValueError(
                f"{path} holds {index.vectors.ntotal} vectors of {index.vectors.d} numbers, and {folder / ENTRIES} lists "
                f"{len(index.entries)} pictures of {content['dimension']}; make a new index"
            )
        return index


def is_index(folder: Path) -> bool:
    """Whether ``folder`` holds an index."""
    return (folder / ENTRIES).is_file()


def read_entries(folder: Path) -> dict[str, Any]:
    """The content of the `index.json` of an index. Raises ValueError if the file is anything else."""
    path = folder / ENTRIES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable: {error}") from error
    needed = {
        "format",
        "fingerprint",
        "normalisation",
        "second_half_weight",
        "dimension",
        "vectors",
        "pictures",
    }
    if not isinstance(content, dict) or content.get("format") != FORMAT or not needed <= content.keys():
        raise ValueError(f"{path} is not an index of dgnet_fast (expected format {FORMAT!r})")
    return content
