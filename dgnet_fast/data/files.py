"""Splits of picture files, and the layouts of one's own pictures: a folder per identity, or a CSV file."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgnet_fast.config.shown import shown
from dgnet_fast.data.base import DISTRACTOR, JUNK, UNKNOWN_CAMERA, ReidDataset, Split
from dgnet_fast.data.reading import read_picture, resized
from dgnet_fast.data.walking import (
    IMAGE_SUFFIXES as IMAGE_SUFFIXES,
)
from dgnet_fast.data.walking import (
    existing,
    find_base,
    images_below,
    images_in,
    no_images,
    normal_name,
    say_others,
)

LARGEST_NUMBER = 10**12
"""Identities and cameras are at most this."""
CSV_COLUMNS = ("path", "id", "camera", "split")


@dataclass(frozen=True)
class FileSplit(Split):
    """Pictures in files; `names` are paths relative to `root`."""

    root: Path

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    def load(self, index: int) -> np.ndarray:
        return np.asarray(read_picture(self.path(index)))

    def load_resized(self, index: int, height: int, width: int) -> np.ndarray:
        return resized(read_picture(self.path(index)), height, width)

    def select(self, indices: Iterable[int]) -> FileSplit:
        """The split of only these pictures."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return FileSplit(self.ids[chosen], self.cameras[chosen], [self.names[i] for i in chosen], self.root)


def picture_files(places: Iterable[str | Path]) -> list[Path]:
    """The picture files that `places` name, without repetition: files as they are, folders with all pictures
    below them, linked folders included, sorted. ValueError names a missing place and a folder without pictures.
    """
    found: dict[Path, None] = {}
    for place in (Path(os.path.expanduser(place)) for place in places):
        if place.is_file():
            found[place] = None
        elif place.is_dir():
            others: Counter[str] = Counter()
            below = images_below(place, others)
            if not below:
                raise no_images(place)
            say_others(place, others)
            found |= dict.fromkeys(below)
        else:
            raise ValueError(f"no such file or folder: {place}")
    return list(found)


def unlabelled(paths: Iterable[str | Path]) -> FileSplit:
    """Picture files without ids and cameras as a split (both -1), in the given order."""
    names = [str(path) for path in paths]
    unknown = np.full(len(names), -1, dtype=np.int64)
    return FileSplit(unknown, unknown.copy(), names, Path())


def file_split(root: Path, folder: Path, rows: list[tuple[int, int, Path]]) -> FileSplit:
    """A split of (id, camera, path) rows found in `folder`; ValueError if there are none."""
    if not rows:
        raise no_images(folder)
    for identity, camera, path in rows:
        if not (abs(identity) <= LARGEST_NUMBER and abs(camera) <= LARGEST_NUMBER):
            raise ValueError(
                f"{path}: identity {shown(identity)} and camera {shown(camera)}; allowed: up to {LARGEST_NUMBER}"
            )
    ids, cameras, paths = zip(*rows, strict=True)
    names = [(path.relative_to(root) if path.is_relative_to(root) else path).as_posix() for path in paths]
    return FileSplit(np.array(ids, dtype=np.int64), np.array(cameras, dtype=np.int64), names, root)


# A folder per identity ------------------------------------------------------------------------------------


def _camera_regex(pattern: str) -> re.Pattern[str]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"camera pattern {pattern!r} is not a regular expression: {error}") from error
    if not regex.groups:
        raise ValueError(
            f"camera pattern {pattern!r} needs a group around the camera's number, as in 'c(\\d+)'"
        )
    return regex


def _camera(path: Path, regex: re.Pattern[str]) -> int:
    match = regex.search(path.name)
    if match is None:
        raise ValueError(f"camera pattern {regex.pattern!r} does not match {path.name!r} ({path})")
    text = match["camera"] if "camera" in regex.groupindex else match[1]
    if text is None or not text.isdecimal() or len(text) > 18:
        raise ValueError(
            f"camera pattern {regex.pattern!r} finds {text!r}, which is no number, in {path.name!r} ({path})"
        )
    return int(text)


def _identity_folders(folder: Path) -> list[Path]:
    return sorted(p for p in existing(folder).iterdir() if p.is_dir() and not p.name.startswith("."))


def _number_identities(found: dict[str, dict[str, list]], junk: str) -> tuple[dict[str, int], dict[int, str]]:
    """Ids by identity name, from 1 in sorted order over all splits, and the names by id.

    As in Market-1501, `-1` is junk and zeros (`0000`) that are in the gallery alone are distractors. `junk`
    says where a junk training identity was found.
    """
    if "-1" in found["train"]:
        raise ValueError(f"{junk}: junk (-1) cannot be trained on")
    special = {"-1": JUNK}
    for name in found["gallery"].keys() - found["train"].keys() - found["query"].keys():
        if set(name) == {"0"}:
            special[name] = DISTRACTOR
    ordered = sorted(set().union(*found.values()) - special.keys())
    numbers = special | {name: number for number, name in enumerate(ordered, start=1)}
    return numbers, {numbers[name]: name for name in ordered}


def load_folder(root: str | Path, camera_pattern: str | None = None) -> ReidDataset:
    """A data set with a folder per identity: `root/{train,query,gallery[,multi-query]}/<identity>/<picture>`.

    The layout that DG-Net's preparation writes (`root/pytorch/{train_all,query,gallery,multi-query}`) is the
    same thing and accepted as it is; `train_all` comes before `train`. Identities may have any names; they
    are numbered from 1 in sorted order over all splits. As in Market-1501, `-1` is junk and zeros (`0000`)
    that are in the gallery alone are distractors. `camera_pattern` is a regular expression searched in each
    file name; its group `camera`, or else its first group, is the camera's number. Without one, cameras are
    unknown (-1).
    """
    base = existing(Path(os.path.expanduser(root)))
    if (base / "pytorch").is_dir():
        base = base / "pytorch"
    elif not (base / "gallery").is_dir():
        base = find_base(base, ("query", "gallery"), ("pytorch",))
    regex = None if camera_pattern is None else _camera_regex(camera_pattern)
    folders = {"train": base / ("train_all" if (base / "train_all").is_dir() else "train")}
    folders |= {"query": base / "query", "gallery": base / "gallery"}
    if (base / "multi-query").is_dir():
        folders["multi_query"] = base / "multi-query"
    found: dict[str, dict[str, list[Path]]] = {split: {} for split in folders}
    others: Counter[str] = Counter()
    for split, folder in folders.items():
        for identity in _identity_folders(folder):
            if paths := images_in(identity, others):
                found[split].setdefault(normal_name(identity.name), []).extend(paths)
        if not found[split]:
            raise no_images(folder, "IDENTITY/PICTURE")
    say_others(base, others)
    numbers, names = _number_identities(found, str(folders["train"] / "-1"))
    splits = {}
    for split, identities in found.items():
        rows = [
            (numbers[name], UNKNOWN_CAMERA if regex is None else _camera(path, regex), path)
            for name, paths in identities.items()
            for path in paths
        ]
        splits[split] = file_split(base, folders[split], rows)
    return ReidDataset("folder", **splits, identity_names=names)


# A CSV file -----------------------------------------------------------------------------------------------


def load_csv(path: str | Path) -> ReidDataset:
    """A data set described by a CSV file with the columns path, id, camera and split (UTF-8, any order).

    `path` is relative to the file's own folder, or absolute; `id` any text (numbered as in `load_folder`:
    `-1` is junk, zeros that are in the gallery alone are distractors); `camera` a whole number, or empty for
    unknown (the column may be left out); `split` is train, query, gallery or multi_query. ValueError names
    the line that cannot be used.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise ValueError(f"no such CSV file: {path}")
    found: dict[str, dict[str, list[tuple[int, Path]]]] = {"train": {}, "query": {}, "gallery": {}}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [c for c in CSV_COLUMNS if c != "camera" and c not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{path} has no column {', '.join(missing)}; its first line must name {', '.join(CSV_COLUMNS)}"
                )
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if not row["path"] or not row["id"]:
                    raise ValueError(f"{where}: path and id must not be empty")
                if "\0" in row["path"] or None in row:
                    raise ValueError(f"{where}: more values than columns, or a path with NUL")
                if row["split"] not in (*found, "multi_query"):
                    raise ValueError(
                        f"{where}: split is {shown(row['split'])}; allowed: train, query, gallery, multi_query"
                    )
                camera = (row.get("camera") or "").strip() or str(UNKNOWN_CAMERA)
                if not re.fullmatch(r"-1|[0-9]{1,12}", camera):
                    raise ValueError(f"{where}: camera is {shown(camera)}; allowed: a whole number, or empty")
                shots = found.setdefault(row["split"], {}).setdefault(normal_name(row["id"]), [])
                shots.append((int(camera), path.parent / row["path"]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    numbers, names = _number_identities(found, str(path))
    splits = {}
    for split, identities in found.items():
        rows = [
            (numbers[name], camera, picture)
            for name, shots in identities.items()
            for camera, picture in shots
        ]
        if not rows:
            raise ValueError(f"{path} has no line of split {split}")
        splits[split] = file_split(path.parent, path, rows)
    return ReidDataset("csv", **splits, identity_names=names)
