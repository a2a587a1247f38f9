"""Search a gallery for the people on query pictures. It needs no labels and no cameras. It needs faiss
(dgnet-fast[search]).

    dgnet-fast search RUN --gallery FOLDER --query a.jpg b.jpg --rank-list ranks.png
    dgnet-fast search RUN --gallery FOLDER --save gallery.index  extracts the features once
    dgnet-fast search RUN --gallery gallery.index --query a.jpg --out found.json
    dgnet-fast search RUN --gallery gallery.index --add MORE     extracts only the new pictures

If the names of the pictures contain identities and cameras, --id-pattern and --camera-pattern find them, and right and
wrong results are marked.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgnet_fast.cli.parser import Parser, at_least, check_new, program, run_command
from dgnet_fast.cli.shared_options import add_extractor_options, extractor_of, readable_files, weight_of
from dgnet_fast.config import ConfigError
from dgnet_fast.report.files import atomically, check_writable, locked, write_text
from dgnet_fast.report.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

    from dgnet_fast.retrieval.extractor import Extractor
    from dgnet_fast.retrieval.index import Entry, PictureIndex

logger = logging.getLogger("dgnet_fast")  # __name__ is __main__ in a command

COLUMNS = ("query", "rank", "path", "score", "identity", "camera", "mark")


def parser() -> Parser:
    made = Parser(prog=program("search"), description=__doc__)
    add_extractor_options(made)
    made.add_argument(
        "--gallery", nargs="+", required=True, metavar="SOURCE",
        help="pictures to search in: folders and files, or the folder of a saved index",
    )  # fmt: skip
    made.add_argument(
        "--query", nargs="+", default=[], metavar="SOURCE", help="query pictures, or folders of them"
    )
    made.add_argument(
        "--save", type=Path, metavar="INDEX", help="save the gallery as an index in this new folder"
    )
    made.add_argument(
        "--add", nargs="+", default=[], metavar="SOURCE",
        help="add pictures to the index that --gallery names; pictures that are already in it are left out",
    )  # fmt: skip
    made.add_argument(
        "--top", type=int, default=10, metavar="N", help="number of results for each query (default 10)"
    )
    made.add_argument(
        "--out", type=Path, metavar="FILE", help="write the results as .json or .csv (default: print them)"
    )
    made.add_argument(
        "--rank-list", type=Path, metavar="FILE", help="draw the rank lists as a picture (.png)"
    )
    made.add_argument(
        "--overwrite", action="store_true", help="replace the files of --out and --rank-list if they exist"
    )
    made.add_argument(
        "--id-pattern", metavar="RE",
        help="regular expression whose first group is the identity, searched in FOLDER/NAME of each picture",
    )  # fmt: skip
    made.add_argument(
        "--camera-pattern", metavar="RE", help="the same for the number of the camera, searched in NAME"
    )
    made.add_argument(
        "--second-half-weight", default="0.5", metavar="X",
        help="weight of the fine-grained half of the feature: a number, or 'only' for that half alone (default 0.5)",
    )  # fmt: skip
    return made


class Labels:
    """Finds identity and camera in the name of a picture, if patterns were given."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.patterns = {}
        for name in ("id_pattern", "camera_pattern"):
            text = getattr(args, name)
            option = f"--{name.replace('_', '-')}"
            try:
                pattern = re.compile(text) if text is not None else None
            except re.error as error:
                raise ConfigError(f"{option} {text!r} is not a regular expression: {error}") from error
            if pattern is not None and not pattern.groups:
                raise ConfigError(f"{option} {text!r} needs a group around what it finds, as in '(\\d+)_'")
            self.patterns[name] = pattern

    def entry(self, path: Path) -> Entry:
        """The picture with the identity and camera of its name; what is not found is unknown."""
        from dgnet_fast.retrieval.index import Entry

        path = path.resolve()
        identity = self._find("id_pattern", f"{path.parent.name}/{path.name}")
        camera = self._find("camera_pattern", path.name)
        if camera is not None and not (camera.isdecimal() and len(camera) <= 12):
            raise ConfigError(
                f"--camera-pattern finds {camera!r}, which is no number, in {path.name!r} ({path})"
            )
        return Entry(str(path), identity, None if camera is None else int(camera))

    def _find(self, name: str, text: str) -> str | None:
        match = self.patterns[name] and self.patterns[name].search(text)
        return match[1] if match else None


def mark_of(query: Entry, found: Entry) -> str:
    """'right', 'wrong', 'same camera' (the same person in the query's own camera), or '' if an identity is unknown."""
    if query.identity is None or found.identity is None:
        return ""
    if query.identity != found.identity:
        return "wrong"
    return "same camera" if query.camera is not None and query.camera == found.camera else "right"


def find(
    index: PictureIndex, queries: list[Entry], vectors: Tensor, top: int
) -> list[list[tuple[Entry, float, str]]]:
    """The ``top`` results (picture, score, mark) of each query, without the file of the query itself."""
    scores, places = index.search(vectors, top + 1)
    rows = []
    for query, values, found in zip(queries, scores.tolist(), places.tolist(), strict=True):
        results = [(index.entries[place], value) for value, place in zip(values, found, strict=True)]
        others = [(entry, value) for entry, value in results if entry.path != query.path][:top]
        rows.append([(entry, value, mark_of(query, entry)) for entry, value in others])
    return rows


def records(queries: list[Entry], rows: list[list[tuple[Entry, float, str]]]) -> list[dict[str, Any]]:
    """One flat record for each result, with the keys of `COLUMNS`."""
    return [
        dict(zip(COLUMNS, (query.path, rank, entry.path, round(score, 6), entry.identity, entry.camera, mark), strict=True))
        for query, results in zip(queries, rows, strict=True)
        for rank, (entry, score, mark) in enumerate(results, start=1)
    ]  # fmt: skip


def as_json(queries: list[Entry], rows: list, fingerprint: str) -> str:
    """The results as JSON text, grouped by query."""
    flat = records(queries, rows)
    grouped = [
        {
            "query": query.path,
            "identity": query.identity,
            "camera": query.camera,
            "results": [
                {k: v for k, v in r.items() if k != "query"} for r in flat if r["query"] == query.path
            ],
        }
        for query in queries
    ]
    return json.dumps({"model": fingerprint, "queries": grouped}, indent=1)


def as_csv(queries: list[Entry], rows: list) -> str:
    """The results as CSV text, one line for each."""
    text = io.StringIO()
    columns: list[str] = [*COLUMNS]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(queries, rows))
    return text.getvalue()


def draw(queries: list[Entry], rows: list[list[tuple[Entry, float, str]]], path: Path) -> None:
    """Write the rank lists as a PNG. Gallery pictures that no longer exist are shown as missing."""
    import numpy as np

    from dgnet_fast.data.files import unlabelled
    from dgnet_fast.report.rank_list import Ranked, RankedRow, rank_list

    def load(entry: Entry) -> np.ndarray | None:
        try:
            return unlabelled([entry.path]).load(0)
        except ValueError:
            return None

    sheet = rank_list(
        [
            RankedRow(
                load(query), query.path, [Ranked(load(e), f"{score:.3f}", mark) for e, score, mark in results]
            )
            for query, results in zip(queries, rows, strict=True)
        ]
    )
    with atomically(path) as temporary:
        sheet.save(temporary, format="PNG")


def extend(
    index: PictureIndex | None, paths: list[Path], extractor: Extractor, labels: Labels, place: Path | None
) -> PictureIndex:
    """Add the pictures that are not yet in the index; a new index is made if there is none. ``place`` is the folder
    where it is saved, or None.
    """
    from dgnet_fast.retrieval.index import PictureIndex
    from dgnet_fast.retrieval.large_index import EXACT_UP_TO

    known = {entry.path for entry in index.entries} if index else set()
    entries = [entry for entry in map(labels.entry, paths) if entry.path not in known]
    if index and len(entries) < len(paths):
        logger.info(f"{len(paths) - len(entries)} pictures are in the index already")
    if entries and len(known) + len(entries) > EXACT_UP_TO:
        return extend_large(index, entries, extractor, place)
    if entries:
        features = extractor.files([entry.path for entry in entries], progress=progress("gallery"))
        vectors = extractor.to_unit(features)
        index = index or PictureIndex(extractor, vectors.shape[1])
        index.add(vectors, entries)
    assert index is not None
    return index


def parts_of(place: Path) -> Path:
    """Where the features of a large gallery are until its index is saved."""
    return place.with_name(f"{place.name}.parts")


def extend_large(
    index: PictureIndex | None, entries: list[Entry], extractor: Extractor, place: Path | None
) -> PictureIndex:
    """`extend` beyond what is searched exactly: features go to the disk in parts, and on to lists on the disk."""
    import numpy as np
    import torch

    from dgnet_fast.retrieval.index import PictureIndex
    from dgnet_fast.retrieval.large_index import EXACT_UP_TO
    from dgnet_fast.retrieval.parts import extract_parts, read_rows, write_rows

    if place is None:
        raise ConfigError(
            f"a gallery of {len(entries)} pictures is searched on the disk; save it with --save INDEX (up to {EXACT_UP_TO} "
            "none is needed)"
        )
    parts = parts_of(place)
    paths = [Path(entry.path) for entry in entries]
    files = extract_parts(extractor, paths, parts, progress=progress("gallery"))
    sources = []
    for file in files:
        unit = file.with_name(file.name.replace("part", "unit"))
        write_rows(unit, extractor.to_unit(torch.from_numpy(read_rows(file))).numpy())
        sources.append(np.load(unit, mmap_mode="r"))
    index = index or PictureIndex(extractor, sources[0].shape[1])
    index.grow(place, sources, entries)
    logger.info(
        f"{place}: searched in lists, which find {100 * index.recall:.1f} % of the 10 nearest neighbours"
    )
    return index


def check(args: argparse.Namespace) -> Path | None:
    """Raise ConfigError for options that exclude each other. Returns the folder of the index that --gallery names, or
    None.
    """
    from dgnet_fast.retrieval.index import check_new_index, is_index

    at_least("top", args.top, 1)
    args.gallery = [os.path.expanduser(place) for place in args.gallery]
    saved = [Path(place) for place in args.gallery if is_index(Path(place))]
    if saved and len(args.gallery) > 1:
        raise ConfigError(f"--gallery names the index {saved[0]} and more; add pictures to it with --add")
    if args.add and not saved:
        raise ConfigError("--add needs a saved index as --gallery; make one with --save INDEX")
    if args.save and saved:
        raise ConfigError(f"{saved[0]} is an index already; add pictures to it with --add")
    if args.save:
        check_new_index(args.save, "--save")
        check_writable(args.save, "--save")
    if not (args.query or args.save or args.add):
        raise ConfigError("nothing to do; give --query, --save or --add")
    if (args.out or args.rank_list) and not args.query:
        raise ConfigError("--out and --rank-list show results; give --query")
    for option, suffixes in (("out", (".json", ".csv")), ("rank_list", (".png",))):
        path = getattr(args, option)
        if path is None:
            continue
        if path.suffix not in suffixes:
            raise ConfigError(
                f"--{option.replace('_', '-')} is {str(path)!r}; allowed: a name ending in {' or '.join(suffixes)}"
            )
        check_new(f"--{option.replace('_', '-')}", path, args.overwrite)
    return saved[0] if saved else None


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    from dgnet_fast.retrieval.index import check_new_index  # --help does not wait for torch

    folder = check(args)

    place = args.save or (folder if args.add else None)
    with locked(place) if place else contextlib.nullcontext():
        if args.save:  # another process may have saved an index there before the lock was free
            check_new_index(args.save, "--save")
        return work(args, folder)


def work(args: argparse.Namespace, folder: Path | None) -> int:
    """Search, save and add as the checked options say; ``folder`` is that of a saved index."""
    from dgnet_fast.retrieval.index import PictureIndex, faiss_library

    labels, weight = Labels(args), weight_of(args.second_half_weight)
    faiss_library()
    skip = args.skip_unreadable
    queries = [labels.entry(path) for path in readable_files(args.query, skip=skip)]
    pictures = readable_files(args.add or ([] if folder else args.gallery), skip=skip)
    extractor = extractor_of(args, second_half_weight=weight)
    index = PictureIndex.open(folder, extractor) if folder else None
    before = len(index) if index else 0
    index = extend(index, pictures, extractor, labels, args.save or folder)
    place = args.save or (folder if args.add else None)
    if place:
        from dgnet_fast.retrieval.parts import remove

        if len(index) > before:
            index.save(place)
        else:
            index.clean(place)  # of one that was killed when it had saved the same pictures
        remove(parts_of(place))
        logger.info(f"{place}: {len(index)} pictures, model {extractor.fingerprint}")
    if not queries:
        return 0
    vectors = extractor.to_unit(extractor.files([query.path for query in queries]))
    rows = find(index, queries, vectors, args.top)
    if args.rank_list:
        draw(queries, rows, args.rank_list)
    if args.out:
        text = (
            as_csv(queries, rows)
            if args.out.suffix == ".csv"
            else as_json(queries, rows, extractor.fingerprint)
        )
        write_text(args.out, text)
    else:
        print(as_csv(queries, rows), end="")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("search"))


if __name__ == "__main__":
    sys.exit(main())
