"""The options that name files and folders, as absolute paths: a run then finds them from any working folder."""

from __future__ import annotations

import os
from pathlib import Path

from dgnet_fast.config.options import SEVERAL, Config


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
