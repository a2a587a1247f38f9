"""Where the pictures of a folder are: files by their suffix, in folders and linked folders, and data sets that lie one or
two folders deeper than was said.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
OTHER_PICTURES = (
    ".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".pgm", ".pbm", ".raw", ".dng", ".tga",
)  # fmt: skip
"""Suffixes of pictures that are not read; their number is said, so that nobody misses them."""
MOST_FOLDERS = 1000
"""Folders that are looked into for a data set."""


def existing(folder: Path) -> Path:
    """`folder`, or ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(f"missing folder {folder}")
    return folder


def normal_name(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes accents as characters of their own, and a folder that was
    copied from there would be another person.
    """
    return unicodedata.normalize("NFC", name)


def images_in(folder: Path, others: Counter[str] | None = None) -> list[Path]:
    """Image files directly in `folder`, sorted by name; other files (Thumbs.db, notes) are passed over. Files with a
    suffix of `OTHER_PICTURES` are counted in ``others``. A link to a picture that is gone counts as a picture, which whoever
    reads it finds missing: a data set on a disk that is not there must not become a smaller one.
    """
    return sorted(_images(folder, os.scandir(folder), others))


def _images(folder: Path, entries: Iterable[os.DirEntry], others: Counter[str] | None) -> Iterator[Path]:
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith(".") or not (entry.is_file() or _is_broken(entry)):
            continue
        if suffix in IMAGE_SUFFIXES:
            yield folder / entry.name
        elif suffix in OTHER_PICTURES and others is not None:
            others[suffix] += 1


def _is_broken(entry: os.DirEntry) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def images_below(folder: Path, others: Counter[str] | None = None) -> list[Path]:
    """Image files in `folder` and in all folders below it, linked ones included, sorted; no folder is read twice."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        state = place.stat()
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(place) as scanned:
            entries = list(scanned)
        found += _images(place, entries, others)
        waiting += sorted(
            (place / e.name for e in entries if e.is_dir() and not e.name.startswith(".")), reverse=True
        )
    return sorted(found)


def say_others(folder: Path, others: Counter[str]) -> None:
    """Say in the log how many pictures of other formats were passed over."""
    if others:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        logger.warning(
            f"{folder}: passed over {sum(others.values())} pictures of formats that are not read ({listed}); "
            f"read are {', '.join(IMAGE_SUFFIXES)}"
        )


def no_images(folder: Path, expected: str = "") -> ValueError:
    """The error for a folder without pictures where they are expected; it says how many lie elsewhere below it."""
    text = f"no images in {folder} (looked for {', '.join(IMAGE_SUFFIXES)})"
    if folder.is_dir() and (below := images_below(folder)):
        text += f"; {len(below)} lie below it, such as {below[0].relative_to(folder)}"
        text += f", expected {expected}" if expected else ""
    return ValueError(text)


def find_base(root: Path, wanted: Iterable[str], likely: Iterable[str] = ()) -> Path:
    """The folder at `root`, or at most two levels below it, that holds folders of the names `wanted`; folders whose
    names are `likely` come first. `root` itself if there is none. Raises ValueError if there are several.
    """
    wanted, likely = list(wanted), set(likely)

    def holds(folder: Path) -> bool:
        return all((folder / name).is_dir() for name in wanted)

    level = [root]
    for _ in range(3):
        found = [folder for folder in level if holds(folder)]
        preferred = [folder for folder in found if folder.name in likely] or found
        if len(preferred) > 1:
            raise ValueError(
                f"{root} holds several data sets: {', '.join(map(str, preferred[:4]))}; name one of them"
            )
        if preferred:
            return preferred[0]
        level = [place for folder in level for place in _folders_in(folder)][:MOST_FOLDERS]
    return root


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
