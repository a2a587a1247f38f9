"""Datasets by name."""

from __future__ import annotations

import dataclasses
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

from dgnet_fast.data.base import ReidDataset
from dgnet_fast.data.files import FileSplit, load_folder, load_market1501
from dgnet_fast.data.synthetic import load_synthetic

DATASETS = ("synthetic", "market1501", "folder")


def load_dataset(
    name: str,
    root: str | None = None,
    *,
    camera_pattern: str | None = None,
    skip_unreadable: bool = False,
    **options,
) -> ReidDataset:
    """The dataset `name`: "synthetic", "market1501" or "folder".

    `root` is where the pictures lie ("synthetic" has none). `camera_pattern` is for "folder" only: a regular
    expression that finds the camera in a file name. `skip_unreadable` reads every picture once and leaves out
    the damaged ones, with a warning that counts them; otherwise a damaged picture raises when it is decoded.
    `options` are those of `load_synthetic`. Raises ValueError on a wrong name or option, a missing folder, a
    folder without images or a name that cannot be parsed.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; choose one of {', '.join(DATASETS)}")
    if camera_pattern is not None and name != "folder":
        raise ValueError(f"camera_pattern is for the dataset 'folder'; {name!r} knows its cameras")
    if name == "synthetic":
        if root is not None:
            raise ValueError(f"the synthetic dataset is drawn, not read; it takes no root, got {root!r}")
        return load_synthetic(**options)
    if options:
        raise ValueError(f"dataset {name!r} has no option {', '.join(sorted(options))}")
    if root is None:
        raise ValueError(f"dataset {name!r} needs a root folder")
    dataset = load_market1501(root) if name == "market1501" else load_folder(root, camera_pattern)
    return without_unreadable(dataset) if skip_unreadable else dataset


def unreadable(split: FileSplit, workers: int | None = None) -> dict[int, str]:
    """Index and error message of every picture of `split` that cannot be decoded."""

    def problem(index: int) -> str | None:
        try:
            split.load(index)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
        problems = list(pool.map(problem, range(len(split))))
    return {index: message for index, message in enumerate(problems) if message is not None}


def without_unreadable(dataset: ReidDataset) -> ReidDataset:
    """`dataset` without the pictures that cannot be decoded; a warning for each split counts them."""
    kept = {}
    for name, split in dataset.splits.items():
        bad = unreadable(split)
        if bad:
            first = next(iter(bad.values()))
            warnings.warn(f"{name}: left out {len(bad)} of {len(split)} images; first: {first}", stacklevel=3)
            if len(bad) == len(split):
                raise ValueError(f"no readable images in the {name} split; first: {first}")
            kept[name] = split.select(i for i in range(len(split)) if i not in bad)
    return dataclasses.replace(dataset, **kept)
