"""YAML files of options, read so that a file of any content costs milliseconds and gives one line that says where the
error is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dgnet_fast.config.fields import ConfigError
from dgnet_fast.config.shown import shown

LARGEST = 2**20
"""Bytes of a file of options; the complete tree takes 4 KB."""
DEEPEST = 16
"""Levels of nested mappings and lists; the tree of options has two."""


class _Refused(yaml.MarkedYAMLError):
    """Something that YAML allows and a file of options does not need."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, which can describe an exponential number of values, without deep nesting,
    and without keys that are given twice, of which one would be lost.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _Refused(None, None, "an alias (*) is not allowed", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Refused(None, None, f"more than {DEEPEST} levels of nesting", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        found: dict[str, Any] = {}
        for key, _ in getattr(node, "value", ()):
            if isinstance(key, yaml.ScalarNode):
                if key.value in found:
                    line = found[key.value].line + 1
                    raise _Refused(None, None, f"{key.value} is also given in line {line}", key.start_mark)
                found[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises ConfigError that names the file, and the line and column of an error;
    an empty file is an error too, because a full disk leaves one.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no such configuration file: {path}")
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes; allowed in a file of options: {LARGEST}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe loader
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: it is no text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: not valid YAML here: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path} is not valid YAML: {reason}") from error
    if values is None:
        raise ConfigError(f"{path} is empty; expected a mapping of options")
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; allowed: a mapping of options")
    return values


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, as `read_mapping` reads it."""
    values = read_mapping(path)
    if "data_root" in values and "data" not in values:
        values["data"] = "folder"  # the public files point at a prepared folder-per-identity tree
    return values


def set_in_tree(tree: dict, dotted: str, value: Any) -> None:
    """Set ``tree['a']['b']`` for ``'a.b'``."""
    *path, last = dotted.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{part} is {shown(tree)}; allowed: a mapping of options")
    tree[last] = value
