"""Published data sets, each in the layout in which it is distributed, with its published counts.

The Market-1501 loader was tested on the distributed data set. The other data sets were not available: their layouts
follow their documentation and are tested on small artificial copies.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgnet_fast.data.base import DISTRACTOR, JUNK, ReidDataset
from dgnet_fast.data.files import FileSplit, file_split
from dgnet_fast.data.walking import existing, find_base, images_in, say_others


@dataclass(frozen=True)
class Published:
    """What a data set is published with: (identities, images) of each split, and its cameras.

    Ids of 0 (distractors) and -1 (junk) are not counted as identities.
    """

    train: tuple[int, int]
    query: tuple[int, int]
    gallery: tuple[int, int]
    cameras: int


@dataclass(frozen=True)
class Layout:
    """One folder of pictures a split, identity and camera in the picture's name.

    `folders` are the names that the data set unpacks to; `splits` those of train, query and gallery; `name`
    finds identity and camera in a picture's name, of which `example` is one.
    """

    title: str
    folders: tuple[str, ...]
    splits: tuple[str, str, str]
    name: re.Pattern[str]
    example: str
    published: Published

    def split(self, base: Path, folder: str) -> FileSplit:
        """The pictures of one folder below `base`."""
        rows = []
        others: Counter[str] = Counter()
        for path in images_in(existing(base / folder), others):
            match = self.name.match(path.name)
            if match is None:
                raise ValueError(f"cannot parse {path}: {self.title} names look like {self.example}")
            rows.append((int(match[1]), int(match[2]), path))
        say_others(base / folder, others)
        return file_split(base, base / folder, rows)


_BOXES = ("bounding_box_train", "query", "bounding_box_test")


def _cuhk03(kind: str, train: int, gallery: int) -> Layout:
    return Layout(
        f"CUHK03-NP ({kind})",
        tuple(f"{top}{kind}" for top in ("cuhk03-np/", "CUHK03-NP/", "cuhk03_np/", "")),
        _BOXES,
        re.compile(r"(\d+)_c(\d)_"),
        "0001_c1_1.png",
        Published((767, train), (700, 1400), (700, gallery), 2),
    )


LAYOUTS = {
    "market1501": Layout(
        "Market-1501",
        ("Market-1501-v15.09.15", "market1501"),
        _BOXES,
        re.compile(r"(-1|\d+)_c(\d+)"),  # -1 is junk, 0000 a distractor
        "0002_c1s1_000451_03.jpg",
        Published((751, 12936), (750, 3368), (750, 19732), 6),
    ),
    "dukemtmc-reid": Layout(
        "DukeMTMC-reID",
        ("DukeMTMC-reID", "dukemtmc-reid"),
        _BOXES,
        re.compile(r"(\d+)_c(\d+)_f"),
        "0005_c2_f0046985.jpg",
        # Of the gallery's 1110 identities 408 are never asked for, and each was seen by one camera only.
        Published((702, 16522), (702, 2228), (1110, 17661), 8),
    ),
    "cuhk03-np-labelled": _cuhk03("labeled", 7368, 5328),
    "cuhk03-np-detected": _cuhk03("detected", 7365, 5332),
    "veri776": Layout(
        "VeRi-776",
        ("VeRi", "VeRi_with_plate", "veri776", "veri"),
        ("image_train", "image_query", "image_test"),
        re.compile(r"(\d+)_c(\d{3})_"),
        "0002_c002_00030600_0.jpg",
        Published((576, 37778), (200, 1678), (200, 11579), 20),
    ),
}

MSMT17_FOLDERS = ("MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17")
MSMT17_PUBLISHED = Published((1041, 32621), (3060, 11659), (3060, 82161), 15)
_MSMT17_NAME = re.compile(r"(\d+)_(\d+)_(\d+)_")  # 0000_000_01_0303morning_0008_0.jpg: camera 1

PUBLISHED = {name: layout.published for name, layout in LAYOUTS.items()} | {"msmt17": MSMT17_PUBLISHED}


def _base(root: str | Path, folders: tuple[str, ...], wanted: Sequence[str]) -> Path:
    """The folder at `root` or below it that holds the folders `wanted`: the data set's own, wherever it was unpacked."""
    root = Path(os.path.expanduser(root))
    for folder in folders:  # names of two folders among them
        if all((root / folder / name).is_dir() for name in wanted):
            return root / folder
    return find_base(root, wanted, (Path(folder).name for folder in folders))


def load_layout(name: str, root: str | Path) -> ReidDataset:
    """The data set `name` of `LAYOUTS`, read in place; `root` is its folder or the one that it unpacked to.

    `multi_query` holds the pictures of `gt_bbox` that share identity and camera with a query, where that
    folder exists (Market-1501). Raises ValueError on a missing or empty folder and a name that cannot be
    parsed.
    """
    layout = LAYOUTS[name]
    base = _base(root, layout.folders, layout.splits)
    train, query, gallery = (layout.split(base, folder) for folder in layout.splits)
    for identity, picture in zip(train.ids, train.names, strict=True):
        if identity in (JUNK, DISTRACTOR):
            raise ValueError(f"{base / picture}: junk and distractors (-1, 0000) cannot be trained on")
    multi_query = None
    if (base / "gt_bbox").is_dir():
        drawn = layout.split(base, "gt_bbox")
        asked = set(zip(query.ids.tolist(), query.cameras.tolist(), strict=True))
        labels = zip(drawn.ids.tolist(), drawn.cameras.tolist(), strict=True)
        multi_query = drawn.select(i for i, label in enumerate(labels) if label in asked)
    names = {int(i): f"{i:04d}" for i in np.unique(np.concatenate([train.ids, query.ids]))}
    return ReidDataset(name, train, query, gallery, multi_query, names)


MSMT17_HALVES = (("mask_train_v2", "mask_test_v2"), ("train", "test"))


def _holds(folder: Path, names: Sequence[str]) -> bool:
    return all((folder / name).is_dir() for name in names)


def _msmt17_rows(folder: Path, listing: Path) -> list[tuple[int, int, Path]]:
    if not listing.is_file():
        raise ValueError(f"missing file {listing}")
    rows = []
    try:
        text = listing.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{listing} is no text in UTF-8: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, _, identity = line.strip().rpartition(" ")
        match = _MSMT17_NAME.match(name.rpartition("/")[2])
        if match is None or not identity.isdecimal() or len(identity) > 12:
            raise ValueError(
                f"cannot parse {listing}, line {number}: MSMT17 lines look like "
                "0000/0000_000_01_0303morning_0008_0.jpg 0"
            )
        rows.append((int(identity), int(match[3]), folder / name))
    return rows


def load_msmt17(root: str | Path) -> ReidDataset:
    """MSMT17 (V1: train/ and test/; V2: mask_train_v2/ and mask_test_v2/), read in place from its four lists.

    Training uses list_train and list_val together, the published 32 621 pictures. In both halves the identities start
    from 0, and the same number means another person in the test. Ids are therefore the training number + 1, and larger
    than all of these for the test; `identity_names` keeps the numbers of the data set.
    """
    root = Path(os.path.expanduser(root))
    base = next(
        (found for halves in MSMT17_HALVES if _holds(found := _base(root, MSMT17_FOLDERS, halves), halves)),
        root,
    )
    second = (base / "mask_train_v2").is_dir()
    folders = [base / (f"mask_{half}_v2" if second else half) for half in ("train", "test")]
    for folder in folders:
        existing(folder)
    lists = {name: base / f"list_{name}.txt" for name in ("train", "val", "query", "gallery")}
    rows = {name: _msmt17_rows(folders[name in ("query", "gallery")], path) for name, path in lists.items()}
    trained = rows["train"] + rows["val"]
    shift = 2 + max((identity for identity, *_ in trained), default=0)
    names = {identity + 1: f"{identity:04d}" for identity, *_ in trained}
    names |= {shift + identity: f"test-{identity:04d}" for identity, *_ in rows["query"] + rows["gallery"]}
    train = file_split(base, lists["train"], [(i + 1, camera, path) for i, camera, path in trained])
    query, gallery = (
        file_split(base, lists[name], [(shift + i, camera, path) for i, camera, path in rows[name]])
        for name in ("query", "gallery")
    )
    return ReidDataset("msmt17", train, query, gallery, None, names)
