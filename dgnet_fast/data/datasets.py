"""Datasets by name."""

from __future__ import annotations

import dataclasses
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dgnet_fast.config import DATASETS, SEVERAL, Config, ConfigError
from dgnet_fast.data.base import ReidDataset
from dgnet_fast.data.combine import combine
from dgnet_fast.data.drawn.dataset import load_synthetic
from dgnet_fast.data.files import FileSplit, load_csv, load_folder
from dgnet_fast.data.layouts import load_layout, load_msmt17


def load_dataset(
    name: str,
    root: str | None = None,
    *,
    camera_pattern: str | None = None,
    skip_unreadable: bool = False,
    **options: Any,
) -> ReidDataset:
    """The dataset `name`, one of `DATASETS`, or several of them as `market1501+msmt17` (see `combine`).

    `root` is where the pictures lie, as the data set unpacks ("csv": the file; "synthetic" has none); several
    sets have one root that holds them all, or one each, separated by commas. `camera_pattern` is for "folder"
    only: a regular expression that finds the camera in a file name. `skip_unreadable` reads every picture
    once and leaves out the damaged ones, with a warning that counts them; otherwise a damaged picture raises
    when it is decoded. `options` are those of `load_synthetic`. Raises ValueError on a wrong name or option,
    a missing folder, a folder without images or a name that cannot be parsed.
    """
    names = name.split(SEVERAL)
    for one in names:
        if one not in DATASETS:
            raise ValueError(f"unknown dataset {one!r}; choose one of {', '.join(DATASETS)}")
    if camera_pattern is not None and "folder" not in names:
        raise ValueError(f"camera_pattern is for the dataset 'folder'; {name!r} knows its cameras")
    if options and "synthetic" not in names:
        raise ValueError(f"dataset {name!r} has no option {', '.join(sorted(options))}")
    if len(names) == 1:
        return _load_one(name, root, camera_pattern, skip_unreadable, options)
    rooted = [one for one in names if one != "synthetic"]
    roots = root.split(",") if root else []
    if len(roots) == 1:
        roots *= len(rooted)
    if len(roots) != len(rooted):
        raise ValueError(
            f"{name} has {len(rooted)} data sets on disk and root names {len(roots)} folders ({root}); "
            "give one that holds them all, or one each, separated by commas"
        )
    remaining = iter(roots)
    parts = []
    for one in names:
        if one == "synthetic":
            parts.append(_load_one(one, None, None, False, options))
        else:
            pattern = camera_pattern if one == "folder" else None
            parts.append(_load_one(one, next(remaining).strip(), pattern, skip_unreadable, {}))
    return combine(parts)


def _load_one(
    name: str, root: str | None, camera_pattern: str | None, skip_unreadable: bool, options: dict
) -> ReidDataset:
    if name == "synthetic":
        if root is not None:
            raise ValueError(f"the synthetic dataset is drawn, not read; it takes no root, got {root!r}")
        return load_synthetic(**options)
    if root is None:
        raise ValueError(f"dataset {name!r} needs a root folder")
    if not Path(os.path.expanduser(root)).exists():
        what = "no such CSV file:" if name == "csv" else "missing folder"
        raise ValueError(f"{what} {root} of data set {name!r}; if it has moved, give its place with --root")
    if name == "folder":
        dataset = load_folder(root, camera_pattern)
    elif name == "csv":
        dataset = load_csv(root)
    elif name == "msmt17":
        dataset = load_msmt17(root)
    else:
        dataset = load_layout(name, root)
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
        assert isinstance(split, FileSplit)  # as all that is read, and not drawn
        bad = unreadable(split)
        if bad:
            first = next(iter(bad.values()))
            warnings.warn(f"{name}: left out {len(bad)} of {len(split)} images; first: {first}", stacklevel=3)
            if len(bad) == len(split):
                raise ValueError(f"no readable images in the {name} split; first: {first}")
            kept[name] = split.select(i for i in range(len(split)) if i not in bad)
    return dataclasses.replace(dataset, **kept)


def dataset_of(config: Config) -> ReidDataset:
    """The data set that the options name."""
    names = config.data.split(SEVERAL)
    drawn = {}
    if "synthetic" in names:
        drawn = {
            "seed": config.seed,
            "train_identities": config.synthetic_ids,
            "test_identities": config.synthetic_test_ids,
            "views_per_identity": config.synthetic_views,
            "height": config.crop_image_height,
            "width": config.crop_image_width,
            "hard": config.synthetic_kind == "hard",
        }
    on_disk = names != ["synthetic"]
    if on_disk and not config.data_root:
        raise ConfigError(f"data is {config.data!r}: give its folder with --root DIR")
    return load_dataset(
        config.data,
        config.data_root if on_disk else None,
        camera_pattern=(config.camera_pattern or None) if on_disk else None,
        skip_unreadable=config.skip_unreadable,
        **drawn,
    )
