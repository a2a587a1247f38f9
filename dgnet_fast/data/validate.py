"""Checks of a data set: its contents as a table, remarks, and a comparison with the published counts."""

from __future__ import annotations

import numpy as np

from dgnet_fast.data.base import DISTRACTOR, JUNK, UNKNOWN_CAMERA, ReidDataset, Split
from dgnet_fast.data.datasets import unreadable
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


if __name__ == "__main__":  # where this command was before it had a place among the others
    import runpy
    import sys

    print("python -m dgnet_fast.data.validate is now dgnet-fast validate", file=sys.stderr)
    runpy.run_module("dgnet_fast.validate", run_name="__main__")
