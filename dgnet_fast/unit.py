"""Train UNIT, which translates pictures between two looks, or between the cameras of a data set.

    python -m dgnet_fast.unit                                              two built-in cities, minutes on two cores
    python -m dgnet_fast.unit --a market1501:train --a-root A --b dukemtmc-reid:train --b-root B
    python -m dgnet_fast.unit --a summer --b winter                        two folders of pictures
    python -m dgnet_fast.unit --cameras market1501:train --root DIR        an encoder and a decoder for each camera
    python -m dgnet_fast.unit --config edges2shoes.yaml                    an unchanged YAML file of the public code
    python -m dgnet_fast.unit --resume --out RUN                           continue a run

A source is a folder, or DATASET:SPLIT, perhaps with :camera=N. Every option of the configuration can be given on the
command line. It replaces the value of --config, which replaces the value of --preset. docs/unit.md says more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dgnet_fast.cli.config_options import add_config_options, given_options
from dgnet_fast.cli.parser import Parser, at_least, program, run_command
from dgnet_fast.cli.running import add_run, ended, new_folder, resumed_folder
from dgnet_fast.config import DRAWN, ConfigError, set_in_tree, walk
from dgnet_fast.config.unit import UNIT_PRESETS, UnitConfig, unit_from_dict
from dgnet_fast.config.yaml_files import read_mapping

SECTIONS = {
    "gen.dim": "encoders and decoders",
    "dis.dim": "discriminators",
    "sources": "data",
    "gan_w": "objective",
    "init": "optimisation",
    "log_iter": "what a run writes",
    "data_root": "accepted from public files",
}


def parser() -> Parser:
    made = Parser(prog=program("unit"), description=__doc__)
    made.add_argument("--a", metavar="SOURCE", help="pictures of the first domain")
    made.add_argument("--b", metavar="SOURCE", help="pictures of the second domain")
    made.add_argument(
        "--cameras",
        metavar="SOURCE",
        help="one domain for each camera of this source, in place of --a and --b",
    )
    made.add_argument("--root", metavar="DIR", help="folder of the data sets that the sources name")
    made.add_argument("--a-root", metavar="DIR", help="folder of the data set of --a (default: --root)")
    made.add_argument("--b-root", metavar="DIR", help="folder of the data set of --b (default: --root)")
    add_run(made, "DATE-TIME-unit")
    made.add_argument(
        "--start",
        type=Path,
        metavar="PATH",
        help="begin with the weights of public files (gen_*.pt, dis_*.pt)",
    )
    presets = f"{', '.join(UNIT_PRESETS)} (default: small for the built-in data, otherwise pedestrians; none with --config)"
    add_config_options(made, tree=UnitConfig(), sections=SECTIONS, names={}, presets=presets)
    return made


def sources_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options ``sources`` and ``roots`` that --a, --b, --cameras and the roots describe."""
    if args.cameras and (args.a or args.b):
        raise ConfigError("--cameras takes the place of --a and --b; give one or the other")
    if bool(args.a) != bool(args.b):
        raise ConfigError(f"--{'b' if args.a else 'a'} is missing: give both --a and --b")
    roots = [args.a_root or args.root, args.b_root or args.root]
    found: dict[str, Any] = {}
    if any(roots):
        same = roots[0] == roots[1]
        found["roots"] = [roots[0]] if same else [root or "" for root in roots]
    if args.a:
        found["sources"] = [args.a, args.b]
    if args.cameras:
        if args.a_root or args.b_root:
            raise ConfigError("--a-root and --b-root belong to --a and --b; --cameras takes --root")
        found["sources"] = [args.cameras]  # its cameras are found when the data set is open
    return found


def config_of(args: argparse.Namespace) -> UnitConfig:
    """The options that the command line describes."""
    from dgnet_fast.translation.batches import BUILT_IN, camera_sources

    if args.preset and args.preset not in UNIT_PRESETS:
        raise ConfigError(f"preset is {args.preset!r}; allowed: {', '.join(UNIT_PRESETS)}")
    values = read_mapping(args.config) if args.config else {}
    values |= sources_of(args)
    given = given_options(args, UnitConfig())
    for name, value in given.items():
        set_in_tree(values, name, value)
    public = any(values.get(k) for k in ("data_root", "data_folder_train_a", "data_folder_train_b"))
    if not values.get("sources") and not public:
        values["sources"] = list(BUILT_IN)
    drawn = not public and all(one.partition(":")[0] in DRAWN for one in values["sources"])
    preset = args.preset or ("" if args.config else "small" if drawn else "pedestrians")
    tree: dict[str, Any] = {
        k: dict(v) if isinstance(v, dict) else v for k, v in UNIT_PRESETS.get(preset, {}).items()
    }
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key].update(value)
        else:
            tree[key] = value
    if args.cameras:
        options = unit_from_dict({k: v for k, v in tree.items() if k != "sources"})
        tree["sources"] = camera_sources(args.cameras, options)
    return unit_from_dict(tree)


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    at_least("max_steps", args.max_steps, 1)
    # After the options were read: they bring torch along, and --help does not need it.
    from dgnet_fast.checkpoints.runs import saved_options
    from dgnet_fast.training.loop import Diverged, Stopped
    from dgnet_fast.translation.run import run_unit

    moved: dict[str, Any] = {}
    if args.resume:
        moved = sources_of(args)
        given = bool(args.config or args.preset or args.start or "sources" in moved)
        folder = resumed_folder(args.out, "--config, --preset, --start and the sources", given)
        tree = saved_options(folder, [name for name, _, _ in walk(UnitConfig())])
        for name, value in given_options(args, UnitConfig()).items():
            set_in_tree(tree, name, value)
        config = unit_from_dict(tree | moved)
    else:
        config = config_of(args)
        folder = new_folder(args.out, "unit")
    given_now = {*given_options(args, UnitConfig()), *moved}
    return ended(
        lambda: run_unit(
            config, folder, resume=args.resume, max_steps=args.max_steps, start=args.start, given=given_now
        ),
        program("unit"),
        folder,
        stopped=Stopped,
        diverged=Diverged,
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("unit"))


if __name__ == "__main__":
    sys.exit(main())
