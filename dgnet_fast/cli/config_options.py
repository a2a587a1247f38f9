"""The options of the configuration tree on the command line."""

from __future__ import annotations

import argparse
import typing
from typing import Any

from dgnet_fast.config import Config, coerce, from_dict, read_yaml, set_in_tree, walk
from dgnet_fast.config.presets import PRESETS, preset

SECTIONS = {
    "gen.activ": "generator: E_s, G and the MLPs",
    "dis.LAMBDA": "discriminator",
    "data": "data",
    "ID_class": "appearance encoder and teacher",
    "gan_w": "objective",
    "batch_size": "optimisation",
    "log_iter": "what a run writes",
    "apex": "accepted from old files",
}
"""The first option of each section of --help."""


def _description(spec: Any, default: Any) -> str:
    meta = spec.metadata
    parts = [meta["help"]]
    if meta["unit"]:
        parts.append(f"in {meta['unit']}")
    if meta["choices"]:
        parts.append("one of " + ", ".join(str(c) for c in dict.fromkeys(meta["choices"])))
    shown = (
        " ".join(map(str, default))
        if isinstance(default, list)
        else repr(default)
        if default == ""
        else default
    )
    parts.append(f"default {shown}")
    return "; ".join(parts).replace("%", "%%")


def add_config_options(parser: argparse.ArgumentParser, aliases: dict[str, str] | None = None) -> None:
    """Add --config, --preset and one option for each entry of the configuration tree. Options are written with - (or
    with _, as in YAML files).
    """
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with options (ours, or one of the public code)"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"named set of options: {', '.join(PRESETS)} (default: small for synthetic data, otherwise paper)",
    )
    group = parser
    for name, spec, owner in walk(Config()):
        if name in SECTIONS:
            group = parser.add_argument_group(SECTIONS[name])
        default = getattr(owner, spec.name)
        spellings = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"])
        spellings |= dict.fromkeys(alias for alias, target in (aliases or {}).items() if target == name)
        extra: dict[str, Any] = {}
        if isinstance(default, bool):
            extra = {"nargs": "?", "const": "true"}
        elif isinstance(default, list):
            extra = {"nargs": "+"}
        metavar = {bool: "BOOL", int: "N", float: "X", str: "TEXT", list: "N"}[type(default)]
        group.add_argument(
            *spellings, dest=f"option:{name}", metavar=metavar, help=_description(spec, default), **extra
        )


def config_from(args: argparse.Namespace, base: dict[str, Any] | None = None) -> tuple[Config, str]:
    """The Config that parsed arguments describe, and the name of its preset.

    Later values replace earlier ones: first the preset, then ``base`` or --config, then single options. The default
    preset is small for synthetic data and paper for other data. With a configuration file or ``base``, and without
    --preset, no preset is used. Where ``max_iter`` is given and ``generator_steps`` is not, the preset's first phase
    becomes longer or shorter with it.
    """
    overrides = given_options(args)
    values = dict(base) if base is not None else read_yaml(args.config) if args.config else {}
    data = overrides.get("data", values.get("data", Config.data))
    name = args.preset or (
        "" if args.config or base is not None else "small" if data == "synthetic" else "paper"
    )
    tree = preset(name) if name else {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key].update(value)
        else:
            tree[key] = value
    for key, value in overrides.items():
        set_in_tree(tree, key, value)
    if name and "generator_steps" not in values.keys() | overrides.keys():
        _scale_first_phase(tree, preset(name))
    return from_dict(tree), name or "config"


def _scale_first_phase(tree: dict[str, Any], shipped: dict[str, Any]) -> None:
    """A preset's first phase keeps its share of the run when the run is made longer or shorter."""
    if shipped.get("generator_steps") and isinstance(tree["max_iter"], int):
        tree["generator_steps"] = round(shipped["generator_steps"] * tree["max_iter"] / shipped["max_iter"])


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the configuration tree that were given on the command line, converted to their types."""
    found = {}
    for name, spec, owner in walk(Config()):
        value = getattr(args, f"option:{name}", None)
        if value is not None:
            found[name] = coerce(name, value, typing.get_type_hints(type(owner))[spec.name])
    return found
