"""python -m tests.stress.campaign [--minutes 30] [--seed 0] [--only NAME]: the whole campaign, and its table.

`make stress` runs it. The exit status is 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

SECTIONS = {
    "kills": (5.0, 100),
    "disk": (2.0, 60),
    "two": (2.0, 40),
    "bits": (0.5, 400),
    "fuzz": (5.0, 5200),
    "tensors": (0.5, 1800),
    "web": (0.5, 1000),
    "changes": (10.0, 10**9),
}
"""Parts of the time for each section, and cases after which it ends earlier; what it leaves goes to the others. The changes
of files end when all were tried.
"""


def campaign(minutes: float, seed: int, only: list[str]) -> int:
    os.environ["DGNET_FAST_CACHE"] = "off"
    torch.set_num_threads(1)
    from tests.stress import damage, fuzz, kills, tensors, web
    from tests.stress.harness import Budget, Section
    from tests.stress.jobs import Ground

    names = [name for name in SECTIONS if not only or name in only]
    with tempfile.TemporaryDirectory(prefix="dgnet-stress-") as root:
        ground = Ground(Path(root))
        run: dict[str, Callable[[Budget, random.Random], Section | list[Section]]] = {
            "kills": lambda budget, rng: kills.at_random(ground, budget, rng),
            "disk": lambda budget, rng: kills.full_disk(ground, budget, rng),
            "two": lambda budget, rng: kills.two_at_once(ground, budget, rng),
            "bits": lambda budget, rng: damage.flipped_bits(ground, budget, rng),
            "fuzz": lambda budget, rng: fuzz.hostile_input(ground, budget, rng),
            "tensors": lambda budget, rng: tensors.hostile_tensors(budget, rng),
            "web": lambda budget, rng: web.probes(ground, budget, rng),
            "changes": lambda budget, rng: kills.every_change(ground, budget, rng),
        }
        if "fuzz" in names:
            fuzz.prepare(ground)
        sections: list[Section] = []
        begin, cpu = time.monotonic(), cpu_seconds()
        end = begin + 60 * minutes
        for place, name in enumerate(names):
            part, most = SECTIONS[name]
            left = sum(SECTIONS[other][0] for other in names[place:])
            budget = Budget((end - time.monotonic()) * part / left, most=most)
            found = run[name](budget, random.Random(f"{seed} {name}"))
            for one in found if isinstance(found, list) else [found]:
                took = f"{time.monotonic() - begin:.0f} s, {cpu_seconds() - cpu:.0f} s of the CPU"
                said = f"{took}, {one.name}: {one.cases} cases, {len(one.failures)} failures"
                print(said, file=sys.stderr, flush=True)
                for failure in one.failures[:20]:
                    print(f"    {failure}", file=sys.stderr, flush=True)
                sections.append(one)
    print("| what | cases | failures | of these cases |\n|---|---:|---:|---|")
    for one in sections:
        notes = ", ".join(f"{name} {count}" for name, count in sorted(one.notes.items()))
        print(f"| {one.name} | {one.cases} | {len(one.failures)} | {notes} |")
    print(f"\n{(time.monotonic() - begin) / 60:.1f} minutes, {(cpu_seconds() - cpu) / 60:.1f} of the CPU")
    return 1 if any(one.failures for one in sections) else 0


def cpu_seconds() -> float:
    """Of this process and of the cases that have ended: what the campaign takes on a core that it has for itself."""
    return sum(os.times()[:4])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the campaign (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn at random (default 0)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=tuple(SECTIONS),
        help="only this section; may be repeated",
    )
    args = parser.parse_args()
    return campaign(args.minutes, args.seed, args.only)


if __name__ == "__main__":
    sys.exit(main())
