"""Splits of picture files, and the two layouts they are found in: Market-1501's own, and a folder per
identity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dgnet_fast.data.base import DISTRACTOR, JUNK, UNKNOWN_CAMERA, ReidDataset, Split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")

_MARKET_FOLDER = "Market-1501-v15.09.15"
_MARKET_NAME = re.compile(r"(-1|\d+)_c(\d+)")  # 0002_c1s1_000451_03.jpg; -1 is junk, 0000 a distractor


@dataclass(frozen=True)
class FileSplit(Split):
    """Pictures in files; `names` are paths relative to `root`."""

    root: Path

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    def _read(self, index: int) -> Image.Image:
        try:
            with Image.open(self.path(index)) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as error:  # Pillow's, for damaged files
            raise ValueError(f"cannot read image {self.path(index)}: {error}") from error

    def load(self, index: int) -> np.ndarray:
        return np.asarray(self._read(index))

    def load_resized(self, index: int, height: int, width: int) -> np.ndarray:
        image = self._read(index)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def select(self, indices: Iterable[int]) -> FileSplit:
        """The split of only these pictures."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return FileSplit(self.ids[chosen], self.cameras[chosen], [self.names[i] for i in chosen], self.root)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"missing folder {folder}")
    return folder


def _images_in(folder: Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name; other files (Thumbs.db, notes) are passed over."""
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
    )


def _split(root: Path, folder: Path, rows: list[tuple[int, int, Path]]) -> FileSplit:
    if not rows:
        raise ValueError(f"no images in {folder} (looked for {', '.join(IMAGE_SUFFIXES)})")
    ids, cameras, paths = zip(*rows, strict=True)
    names = [path.relative_to(root).as_posix() for path in paths]
    return FileSplit(np.array(ids, dtype=np.int64), np.array(cameras, dtype=np.int64), names, root)


# Market-1501 ----------------------------------------------------------------------------------------------


def _market_split(root: Path, folder: str) -> FileSplit:
    rows = []
    for path in _images_in(_existing(root / folder)):
        match = _MARKET_NAME.match(path.name)
        if match is None:
            raise ValueError(f"cannot parse {path}: Market-1501 names look like 0002_c1s1_000451_03.jpg")
        rows.append((int(match[1]), int(match[2]), path))
    return _split(root, root / folder, rows)


def load_market1501(root: str | Path) -> ReidDataset:
    """Market-1501 as published, read in place; `root` is its folder or the one that holds
    `Market-1501-v15.09.15`.

    `multi_query` holds the pictures of `gt_bbox` that share identity and camera with a query, where that
    folder exists.
    """
    base = Path(root)
    base = base / _MARKET_FOLDER if (base / _MARKET_FOLDER).is_dir() else base
    train = _market_split(base, "bounding_box_train")
    for identity, name in zip(train.ids, train.names, strict=True):
        if identity in (JUNK, DISTRACTOR):
            raise ValueError(f"{base / name}: junk and distractors (-1, 0000) cannot be trained on")
    query, gallery = _market_split(base, "query"), _market_split(base, "bounding_box_test")
    multi_query = None
    if (base / "gt_bbox").is_dir():
        drawn = _market_split(base, "gt_bbox")
        asked = set(zip(query.ids.tolist(), query.cameras.tolist(), strict=True))
        labels = zip(drawn.ids.tolist(), drawn.cameras.tolist(), strict=True)
        multi_query = drawn.select(i for i, label in enumerate(labels) if label in asked)
    names = {int(i): f"{i:04d}" for i in np.unique(np.concatenate([train.ids, query.ids]))}
    return ReidDataset("market1501", train, query, gallery, multi_query, names)


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
    if text is None or not text.isdecimal():
        raise ValueError(
            f"camera pattern {regex.pattern!r} finds {text!r}, which is no number, in {path.name!r} ({path})"
        )
    return int(text)


def _identity_folders(folder: Path) -> list[Path]:
    return sorted(p for p in _existing(folder).iterdir() if p.is_dir() and not p.name.startswith("."))


def load_folder(root: str | Path, camera_pattern: str | None = None) -> ReidDataset:
    """A data set with a folder per identity: `root/{train,query,gallery[,multi-query]}/<identity>/<picture>`.

    The layout that DG-Net's preparation writes (`root/pytorch/{train_all,query,gallery,multi-query}`) is the
    same thing and accepted as it is; `train_all` comes before `train`. Identities may have any names; they
    are numbered from 1 in sorted order over all splits. As in Market-1501, `-1` is junk and zeros (`0000`)
    that are in the gallery alone are distractors. `camera_pattern` is a regular expression searched in each
    file name; its group `camera`, or else its first group, is the camera's number. Without one, cameras are
    unknown (-1).
    """
    base = _existing(Path(root))
    if (base / "pytorch").is_dir():
        base = base / "pytorch"
    regex = None if camera_pattern is None else _camera_regex(camera_pattern)
    folders = {"train": base / ("train_all" if (base / "train_all").is_dir() else "train")}
    folders |= {"query": base / "query", "gallery": base / "gallery"}
    if (base / "multi-query").is_dir():
        folders["multi_query"] = base / "multi-query"
    found: dict[str, dict[str, list[Path]]] = {split: {} for split in folders}
    for split, folder in folders.items():
        for identity in _identity_folders(folder):
            if paths := _images_in(identity):
                found[split][identity.name] = paths
    if "-1" in found["train"]:
        raise ValueError(f"{folders['train'] / '-1'}: junk (-1) cannot be trained on")
    special = {"-1": JUNK}
    for name in found["gallery"].keys() - found["train"].keys() - found["query"].keys():
        if set(name) == {"0"}:
            special[name] = DISTRACTOR
    ordered = sorted(set().union(*found.values()) - special.keys())
    numbers = special | {name: number for number, name in enumerate(ordered, start=1)}
    splits = {}
    for split, identities in found.items():
        rows = [
            (numbers[name], UNKNOWN_CAMERA if regex is None else _camera(path, regex), path)
            for name, paths in identities.items()
            for path in paths
        ]
        splits[split] = _split(base, folders[split], rows)
    return ReidDataset("folder", **splits, identity_names={numbers[name]: name for name in ordered})
