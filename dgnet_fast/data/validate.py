"""Check a data set and report its contents: `python -m dgnet_fast.data.validate --data NAME --root DIR`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable

import numpy as np

from dgnet_fast.config import DATASETS
from dgnet_fast.config.shown import one_line
from dgnet_fast.data.base import DISTRACTOR, JUNK, UNKNOWN_CAMERA, ReidDataset, Split
from dgnet_fast.data.datasets import load_dataset, unreadable, without_unreadable
from dgnet_fast.data.files import FileSplit
from dgnet_fast.data.layouts import PUBLISHED
from dgnet_fast.data.rules import check_scorable, check_trainable


def _summary(name: str, split: Split) -> tuple[str, ...]:
    people = np.unique(split.ids[split.ids > DISTRACTOR])
    cameras = np.unique(split.cameras)
    said = "unknown" if (cameras == UNKNOWN_CAMERA).all() else f"{len(cameras)}"
    junk, distractors = int((split.ids == JUNK).sum()), int((split.ids == DISTRACTOR).sum())
    return name, f"{len(people)}", f"{len(split)}", said, f"{distractors}", f"{junk}"


def table(dataset: ReidDataset) -> str:
    """Identities, images, cameras, distractors and junk of each split, as aligned text."""
    rows = [("split", "identities", "images", "cameras", "distractors", "junk")]
    rows += [_summary(name, split) for name, split in dataset.splits.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *numbers in rows:
        cells = [name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def validate(dataset: ReidDataset) -> list[str]:
    """Checks every picture and label of `dataset`; returns remarks on what is allowed but worth knowing.

    Raises ValueError for what cannot work: an unreadable picture, training pictures of a single identity, or
    no query with a valid match in the gallery.
    """
    for split in dataset.splits.values():
        if isinstance(split, FileSplit):
            bad = unreadable(split)
            if bad:
                more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
                raise ValueError(
                    f"{next(iter(bad.values()))}{more}; --skip-unreadable leaves such images out"
                )
    check_trainable(dataset)
    remarks = []
    identities, counts = np.unique(dataset.train.ids, return_counts=True)
    alone = identities[counts == 1]
    if len(alone):
        names = ", ".join(dataset.identity_names.get(int(i), str(i)) for i in alone[:5])
        remarks.append(
            f"{len(alone)} training identities have one image, which is then its own positive: {names}"
            + (", ..." if len(alone) > 5 else "")
        )
    shared = np.intersect1d(identities, dataset.query.ids)
    if len(shared):
        names = ", ".join(dataset.identity_names.get(int(i), str(i)) for i in shared[:5])
        remarks.append(f"{len(shared)} query identities are trained on, so scores will flatter: {names}")
    valid = check_scorable(dataset.query, dataset.gallery)
    if valid < len(dataset.query):
        remarks.append(
            f"{len(dataset.query) - valid} of {len(dataset.query)} queries have no valid match in the gallery"
        )
    return remarks


def against_published(dataset: ReidDataset) -> str | None:
    """Whether identities, images and cameras are the published ones; None where none are published."""
    published = PUBLISHED.get(dataset.name)
    if published is None:
        return None
    differing = []
    for name in ("train", "query", "gallery"):
        split = dataset.splits[name]
        found = len(np.unique(split.ids[split.ids > DISTRACTOR])), len(split)
        for what, count, expected in zip(
            ("identities", "images"), found, getattr(published, name), strict=True
        ):
            if count != expected:
                differing.append(f"{name} {what} {count} ({expected})")
    cameras = np.unique(np.concatenate([split.cameras for split in dataset.splits.values()]))
    if len(cameras) != published.cameras:
        differing.append(f"cameras {len(cameras)} ({published.cameras})")
    if not differing:
        return "counts are the published ones"
    return f"note: counts differ from the published ones (in brackets): {', '.join(differing)}"


def main(argv: list[str] | None = None, write: Callable[[str], None] = print) -> int:
    """The command; returns its exit status: 0 if the dataset can be used, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m dgnet_fast.data.validate", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--data", required=True, metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--root", metavar="DIR", help="folder of the data set (for csv the file)")
    parser.add_argument(
        "--camera-pattern",
        metavar="RE",
        help="regular expression that finds the camera in a file name (data set 'folder')",
    )
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out pictures that cannot be read, and report how many there are",
    )
    options = parser.parse_args(argv)
    try:
        return _report(options, write)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of the output went away
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1


def _report(options: argparse.Namespace, write: Callable[[str], None]) -> int:
    dataset = load_dataset(options.data, options.root, camera_pattern=options.camera_pattern)
    if options.skip_unreadable and options.data != "synthetic":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = without_unreadable(dataset)
        for warning in caught:
            write(f"note: {warning.message}")
    remarks = validate(dataset)
    write(table(dataset))
    for remark in remarks:
        write(f"note: {remark}")
    if compared := against_published(dataset):
        write(compared)
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
