"""The options of the configuration tree on the command line."""

from __future__ import annotations

import argparse
import typing
from typing import Any

from dgnet_fast.cli.parser import Parser
from dgnet_fast.config import Config, coerce, read_yaml, walk
from dgnet_fast.config.presets import PRESETS, combined

SECTIONS = {
    "gen.activ": "generator: E_s, G and the MLPs",
    "dis.LAMBDA": "discriminator",
    "reid.views": "teacher and baseline as in re-identification toolboxes",
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


METAVARS = {
    "data": "NAME", "data_root": "DIR", "data_cache": "DIR", "camera_pattern": "RE", "pretrained": "FILE", "device": "DEVICE",
}  # fmt: skip
"""What stands for the value in --help, where the type of the option does not say it."""
NAMES = {"data_root": ("--root", "--data-root")}
"""Names on the command line that are not those of the YAML files; the first one is shown."""
USUAL = ("data", "data_root", "pretrained", "batch_size", "seed", "device")
"""Options of the configuration tree that --help shows; --help-all shows all of them."""


def add_config_options(
    parser: Parser,
    *,
    tree: Any = None,
    sections: dict[str, str] = SECTIONS,
    names: dict[str, tuple[str, ...]] = NAMES,
    presets: str = f"{', '.join(PRESETS)} (default: small for synthetic data, otherwise paper)",
) -> None:
    """Add --config, --preset and one option for each entry of the configuration tree. --help shows `USUAL` alone.

    ``tree``: the options with their defaults, `Config` without it; ``sections``, ``names`` and ``presets``
    belong to it.
    """
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with options (ours, or one of the public code)"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"named set of options: {presets}",
    )
    usual = parser.add_argument_group("the most used options of the configuration")
    group: Any = parser
    rare = []
    for name, spec, owner in walk(tree or Config()):
        if name in sections:
            group = parser.add_argument_group(sections[name])
        default = getattr(owner, spec.name)
        extra: dict[str, Any] = {}
        if isinstance(default, bool):
            extra = {"nargs": "?", "const": "true"}
        elif isinstance(default, list):
            extra = {"nargs": "+"}
        kind = {bool: "BOOL", int: "N", float: "X", str: "TEXT", list: "N"}[type(default)]
        if default == []:
            kind = "TEXT"
        action = (usual if name in USUAL else group).add_argument(
            *names.get(name, (f"--{name.replace('_', '-')}",)),
            dest=f"option:{name}",
            metavar=METAVARS.get(name, kind),
            help=_description(spec, default),
            **extra,
        )
        if name not in USUAL:
            rare.append(action)
    parser.hide(rare)


def config_from(args: argparse.Namespace, base: dict[str, Any] | None = None) -> tuple[Config, str]:
    """The Config that parsed arguments describe, and the name of its preset.

    Later values replace earlier ones: first the preset, then ``base`` or --config, then single options. The default
    preset is small for synthetic data and paper for other data. With a configuration file or ``base``, and without
    --preset, no preset is used. Where ``max_iter`` is given and ``generator_steps`` is not, the preset's first phase
    becomes longer or shorter with it.
    """
    overrides = given_options(args)
    values = dict(base) if base is not None else read_yaml(args.config) if args.config else {}
    return combined(values, overrides, args.preset, by_default=not args.config and base is None)


def given_options(args: argparse.Namespace, tree: Any = None) -> dict[str, Any]:
    """The options of the configuration tree that were given on the command line, converted to their types."""
    found = {}
    for name, spec, owner in walk(tree or Config()):
        value = getattr(args, f"option:{name}", None)
        if value is not None:
            found[name] = coerce(name, value, typing.get_type_hints(type(owner))[spec.name])
    return found
