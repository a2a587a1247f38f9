"""A re-identification data set in another look: every picture translated, with its name, identity and camera kept.

    DIR/set.json       what the set is: checkpoint, source, domains, size; a different set is refused in this folder
    DIR/manifest.csv   one line for each picture, added after the picture itself was written
    DIR/dataset.csv    the whole set as a data set of the kind csv: path, id, camera, split
    DIR/…              the pictures, in the folders and under the names of the source

It can be continued after any interruption, as sets of `dgnet_fast.generation.sets`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dgnet_fast.checkpoints.fingerprint import digest
from dgnet_fast.config import DATASETS, Config, ConfigError
from dgnet_fast.config.choices import FILE_TYPES
from dgnet_fast.config.shown import shown
from dgnet_fast.data import ChosenPictures, ReidDataset, Split
from dgnet_fast.data.combine import JoinedSplit
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.data.drawn.dataset import SyntheticSplit
from dgnet_fast.data.files import CSV_COLUMNS, FileSplit
from dgnet_fast.data.pictures import Pictures, open_pictures
from dgnet_fast.models.unit import Unit
from dgnet_fast.report.files import locked, write_text
from dgnet_fast.report.progress import Progress
from dgnet_fast.translation.folder import FORMAT, TranslatedSet, manifest_lines, read_description
from dgnet_fast.translation.scores import short, translated

MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
"""Folders of drawn pictures, which have none of their own: those of Market-1501."""
ALL = "all"
"""Every other domain, as the target."""


class Row(NamedTuple):
    """One line of a manifest: the picture's file below the folder; name, identity and camera of the picture that it was
    made from; the split; the names of both domains; and the fingerprint of the weights.
    """

    file: str
    source: str
    id: int
    camera: int
    split: str
    origin: str
    target: str
    checkpoint: str


def domain_names(model: Unit) -> list[str]:
    """The names of the domains of a model: those of its sources, or a and b."""
    sources = model.config.sources
    return [short(one) for one in sources] if sources else ["a", "b"]


def domain_of(model: Unit, text: str, option: str) -> int:
    """The domain that a word means: a, b, …; its number from 1; its name; or its whole source."""
    names, sources = domain_names(model), model.config.sources
    count = len(names)
    letters = [chr(ord("a") + k) for k in range(count)]
    # a camera's own number before its place
    cameras, places = [n.removeprefix("camera ") for n in names], [str(k + 1) for k in range(count)]
    for words in (letters, names, sources, cameras, places):
        if text in words:
            return words.index(text)
    shown = ", ".join(f"{letter} ({name})" for letter, name in zip(letters, names, strict=True))
    raise ConfigError(f"{option} is {text!r}; allowed: {shown}")


class Part(NamedTuple):
    """Pictures of one split, to be translated from the domains ``origins`` (N,)."""

    name: str
    pictures: Pictures
    origins: np.ndarray


def open_parts(model: Unit, source: str, config: Config, origin: str | None) -> list[Part]:
    """The pictures of ``source``: one split or, of a data set without a split, all. ``origin`` names their domain; without it,
    it is the first one, or, in a model of cameras, the domain of each picture's own camera. ValueError for a camera that
    is no domain.
    """
    name, _, rest = source.partition(":")
    if not rest and name in DATASETS and not Path(source).exists():
        dataset = dataset_of(config.replace(data=name))
        named = {
            split: open_pictures(f"{source}:{split}", config)
            for split in MARKET_FOLDERS
            if split in dataset.splits
        }
    else:
        named = {rest.partition(":")[0] or "train": open_pictures(source, config)}
    names = domain_names(model)
    by_camera = all(one.startswith("camera ") for one in names)
    found = []
    for split, pictures in named.items():
        if origin is None and by_camera:
            cameras = [f"camera {camera}" for camera in pictures.split.cameras]
            unknown = sorted(set(cameras) - set(names))
            if unknown:
                raise ValueError(
                    f"{source} has pictures of {unknown[0]}, which is no domain of the model ({', '.join(names)}); name one with --from"
                )
            origins = np.array([names.index(camera) for camera in cameras], dtype=np.int64)
        else:
            origins = np.full(
                len(pictures), 0 if origin is None else domain_of(model, origin, "--from-domain")
            )
        found.append(Part(split, pictures, origins))
    return found


def _file(split: Split, index: int, part: str) -> str:
    """The name of a picture below the folder of its data set, without its suffix."""
    if isinstance(split, ChosenPictures):
        return _file(split.source, int(split.indices[index]), part)
    if isinstance(split, SyntheticSplit):
        identity, camera, view = int(split.ids[index]), int(split.cameras[index]), int(split.views[index])
        return f"{MARKET_FOLDERS.get(part, part)}/{identity:04d}_c{camera}s1_{view:06d}_00"
    return str(Path(split.names[index]).with_suffix("")).lstrip("/").replace("../", "")


def rows_of(
    model: Unit, parts: Sequence[Part], targets: Sequence[int], checkpoint: str, suffix: str
) -> list[tuple[Row, int, int, int]]:
    """(row, part, index in it, target domain) of every picture that the set will have."""
    names = domain_names(model)
    several, found = len(targets) > 1, []
    for number, part in enumerate(parts):
        split = part.pictures.split
        for k in range(len(split)):
            origin = int(part.origins[k])
            base = _file(split, k, part.name)
            for target in targets:
                if several and target == origin:
                    continue
                letters = [
                    one.removeprefix("camera ").replace(" ", "_") for one in (names[origin], names[target])
                ]
                ending = f"_fake_{letters[0]}to{letters[1]}" if several else ""
                row = Row(
                    f"{base}{ending}{suffix}", split.names[k], int(split.ids[k]), int(split.cameras[k]), part.name,
                    names[origin], names[target], checkpoint,
                )  # fmt: skip
                found.append((row, number, k, target))
    files = [row.file for row, *_ in found]
    if len(set(files)) < len(files):
        twice = next(f for f in files if files.count(f) > 1)
        raise ValueError(
            f"two pictures of the source would both be {twice}; translate their folders one by one"
        )
    return found


def write_translated(
    folder: Path,
    model: Unit,
    source: str,
    parts: Sequence[Part],
    targets: Sequence[int],
    *,
    file_type: str = "png",
    batch: int = 32,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Translate ``parts`` into ``folder``. Returns the number of pictures made now, and of those that were there before.

    ``targets``: the domains; with several, every picture goes to each of them but its own, and its file name says so.
    With the same arguments again it makes only the missing pictures. Raises ValueError if the folder holds anything else.
    """
    if file_type not in FILE_TYPES:
        raise ValueError(f"file type is {file_type!r}; allowed: {', '.join(FILE_TYPES)}")
    height, width = model.config.picture_size
    fingerprint = digest(dict(model.state_dict()))
    listed = rows_of(model, parts, targets, fingerprint, FILE_TYPES[file_type])
    names = hashlib.sha256("\0".join(row.file + row.origin for row, *_ in listed).encode()).hexdigest()
    description = {
        "format": FORMAT,
        "checkpoint": fingerprint,
        "source": source,
        "targets": [domain_names(model)[k] for k in targets],
        "count": len(listed),
        "height": height,
        "width": width,
        "file_type": FILE_TYPES[file_type],
        "pictures": names[:16],
        "batch": min(batch, len(listed)),
    }
    with locked(folder):
        target = TranslatedSet(folder, description, Row._fields)
        todo = target.missing([row for row, *_ in listed])
        _translate(target, model, parts, listed, todo, progress)
        _write_dataset(folder, [row for row, *_ in listed])
    return len(todo), len(listed) - len(todo)


def _translate(
    target: TranslatedSet,
    model: Unit,
    parts: Sequence[Part],
    listed: Sequence[tuple[Row, int, int, int]],
    todo: Sequence[int],
    progress: Progress | None,
) -> None:
    """Translate the pictures of the rows ``todo`` in passes of one size: a shorter one is filled up, because another size
    can change a pixel by 1.
    """
    batch = target.description["batch"]
    size = model.config.picture_size
    # one way of translating at a time, so that a pass is one batch
    ways = [(listed[k][1], int(parts[listed[k][1]].origins[listed[k][2]]), listed[k][3]) for k in todo]
    order = sorted(range(len(todo)), key=lambda k: ways[k])
    done, first = 0, 0
    while first < len(order):
        way = ways[order[first]]
        chosen = [todo[k] for k in order[first : first + batch] if ways[k] == way]
        first += len(chosen)
        number, origin, to = way
        pictures = parts[number].pictures.choose([listed[k][2] for k in chosen]).decode(*size)
        pictures = torch.cat([pictures, pictures[-1:].expand(batch - len(chosen), -1, -1, -1)])
        target.add(
            [listed[k][0] for k in chosen], translated(model, pictures, origin, to, batch)[: len(chosen)]
        )
        done += len(chosen)
        if progress is not None:
            progress(len(listed) - len(todo) + done, len(listed))


def _write_dataset(folder: Path, rows: Sequence[Row]) -> None:
    """``dataset.csv``: the set as a data set of the kind csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([row.file, row.id, row.camera, row.split] for row in rows)
    write_text(folder / "dataset.csv", text.getvalue())


def whole_number(text: str) -> int:
    """A whole number of a manifest; ValueError for anything else, or one that no identity or camera has."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError(f"{shown(text)} is no whole number")
    return int(text)


def read_translated(folder: str | Path, split: str = "train") -> FileSplit:
    """The finished pictures of one split of a translated set, with identities and cameras. ValueError without any."""
    read_description(folder)
    rows = []
    for number, line in enumerate(manifest_lines(folder, Row._fields), start=2):
        try:
            rows.append(Row._make([*line[:2], whole_number(line[2]), whole_number(line[3]), *line[4:]]))
        except ValueError as error:
            raise ValueError(f"{folder}/manifest.csv, line {number}: {error}") from error
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        there = ", ".join(sorted({row.split for row in rows})) or "none"
        raise ValueError(f"{folder} has no translated pictures of the split {split!r}; there are: {there}")
    return FileSplit(
        np.array([row.id for row in chosen], dtype=np.int64),
        np.array([row.camera for row in chosen], dtype=np.int64),
        [row.file for row in chosen],
        Path(folder),
    )


def with_training(dataset: ReidDataset, name: str, *splits: Split) -> ReidDataset:
    """A data set that trains on these pictures, whose identities are the same people, and is tested as ``dataset`` is."""
    ids, cameras = (np.concatenate([getattr(one, kind) for one in splits]) for kind in ("ids", "cameras"))
    names = [name for one in splits for name in one.names]
    return ReidDataset(name, JoinedSplit(ids, cameras, names, splits), dataset.query, dataset.gallery)
