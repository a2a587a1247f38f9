"""python -m tests.stress.campaign [--minutes 30] [--seed 0] [--only NAME]: the whole campaign, and its table.

`make stress` runs it. The exit status is 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

SHARES = {
    "changes": 4.0,
    "kills": 4.0,
    "disk": 2.0,
    "two": 1.5,
    "bits": 1.5,
    "fuzz": 6.0,
    "tensors": 1.0,
    "web": 0.5,
}
"""Parts of the time for each section."""


def campaign(minutes: float, seed: int, only: list[str]) -> int:
    os.environ["DGNET_FAST_CACHE"] = "off"
    torch.set_num_threads(1)
    from tests.stress import damage, fuzz, kills, tensors, web
    from tests.stress.harness import Section
    from tests.stress.jobs import Ground

    names = [name for name in SHARES if not only or name in only]
    with tempfile.TemporaryDirectory(prefix="dgnet-stress-") as root:
        ground = Ground(Path(root))
        run: dict[str, Callable[[float, random.Random], Section | list[Section]]] = {
            "changes": lambda seconds, rng: kills.every_change(ground, seconds, rng),
            "kills": lambda seconds, rng: kills.at_random(ground, seconds, rng),
            "disk": lambda seconds, rng: kills.full_disk(ground, seconds, rng),
            "two": lambda seconds, rng: kills.two_at_once(ground, seconds, rng),
            "bits": lambda seconds, rng: damage.flipped_bits(ground, seconds, rng),
            "fuzz": lambda seconds, rng: fuzz.hostile_input(ground, seconds, rng),
            "tensors": lambda seconds, rng: tensors.hostile_tensors(seconds, rng),
            "web": lambda seconds, rng: web.probes(ground, seconds, rng),
        }
        if "fuzz" in names:
            fuzz.prepare(ground)
        sections: list[Section] = []
        total = sum(SHARES[name] for name in names)
        for name in names:
            seconds = 60 * minutes * SHARES[name] / total
            found = run[name](seconds, random.Random(f"{seed} {name}"))
            for one in found if isinstance(found, list) else [found]:
                print(
                    f"{one.name}: {one.cases} cases, {len(one.failures)} failures",
                    file=sys.stderr,
                    flush=True,
                )
                for failure in one.failures[:20]:
                    print(f"    {failure}", file=sys.stderr, flush=True)
                sections.append(one)
    print("| what | cases | failures | of these cases |\n|---|---:|---:|---|")
    for one in sections:
        notes = ", ".join(f"{name} {count}" for name, count in sorted(one.notes.items()))
        print(f"| {one.name} | {one.cases} | {len(one.failures)} | {notes} |")
    return 1 if any(one.failures for one in sections) else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the campaign (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn at random (default 0)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=tuple(SHARES),
        help="only this section; may be repeated",
    )
    args = parser.parse_args()
    return campaign(args.minutes, args.seed, args.only)


if __name__ == "__main__":
    sys.exit(main())
