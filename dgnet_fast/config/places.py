"""The options that name files and folders, as absolute paths: a run then finds them from any working folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dgnet_fast.config.options import DATASETS, SEVERAL, Config
from dgnet_fast.config.unit import UnitConfig


def absolute(text: str) -> str:
    """An absolute path with ``~`` expanded; links stay as they are."""
    return os.path.abspath(os.path.expanduser(text))


def _teacher(name: str) -> str:
    """A teacher that is a file or folder here, or below ./models as in the public code; another name stays."""
    for place in (Path(name).expanduser(), Path("models") / name):
        if place.exists():
            return absolute(str(place))
    return name


def with_absolute_paths(config: Config) -> Config:
    """The options with absolute paths: data_root, pretrained, teacher and data_cache."""
    changes = {}
    if config.data_root:
        several = SEVERAL in config.data
        roots = config.data_root.split(",") if several else [config.data_root]
        changes["data_root"] = ",".join(absolute(root.strip() if several else root) for root in roots)
    if config.pretrained not in ("", "teacher"):
        changes["pretrained"] = absolute(config.pretrained)
    if config.teacher not in ("", "auto"):
        names = filter(None, (name.strip() for name in config.teacher.split(",")))
        changes["teacher"] = ",".join(_teacher(name) for name in names)
    if config.data_cache not in ("", "auto", "off"):
        changes["data_cache"] = absolute(config.data_cache)
    return config.replace(**changes)


def is_data_set(source: str) -> bool:
    """Whether a source of pictures names a data set, as in ``market1501:train``, and not a file or a folder."""
    name = source.partition(":")[0]
    return all(one in DATASETS for one in name.split(SEVERAL)) and not Path(source).exists()


def with_absolute_unit_paths(config: UnitConfig) -> UnitConfig:
    """The options of UNIT with absolute paths: sources that are folders, roots, lists of pictures, weights and cache."""
    changes: dict[str, Any] = {
        "sources": [one if is_data_set(one) else absolute(one) for one in config.sources],
        "roots": [one and absolute(one) for one in config.roots],
    }
    for name in ("data_root", "vgg_weights", *PUBLIC_PLACES):
        if value := getattr(config, name):
            changes[name] = absolute(value)
    if config.data_cache not in ("", "auto", "off"):
        changes["data_cache"] = absolute(config.data_cache)
    return config.replace(**changes)


PUBLIC_PLACES = tuple(f"data_{kind}_train_{domain}" for kind in ("folder", "list") for domain in "ab")
