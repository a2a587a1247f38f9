"""Does bf16 train as float32 does? The default run in both, over several seeds.

    python -m benchmarks.precision [--seeds 3] [--jobs 1] [--out benchmarks/results] [any option of dgnet_fast.train]

Writes MACHINE-DATE-precision.md (and .json): every final score by seed, mean and deviation of both precisions. On a CPU
without bf16 arithmetic matrix products and convolutions of bf16 tensors are computed in float32 and rounded to bf16,
which is what bf16 hardware does (exact products, float32 sums), because PyTorch's emulation takes seconds a call; all else
runs as it is. Minutes a run, each in its own process, ``--jobs`` at a time (OMP_NUM_THREADS says with how many threads).

The 96 queries of the small preset are few: ``--synthetic-test-ids 160`` scores 473, of people of the same kind.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.conftest import machine
from dgnet_fast.ops.registry import cpu_multiplies_bf16
from dgnet_fast.report.tables import read_tables

RESULTS = Path(__file__).resolve().parent / "results"
PRECISIONS = {"fp32": "off", "bf16": "bf16"}

_aten = torch.ops.aten
PRODUCTS = {
    _aten.convolution.default,
    _aten.convolution_backward.default,
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
}


class ProductsInFloat32(TorchDispatchMode):
    """Products of bf16 CPU tensors by float32 arithmetic, results rounded to bf16."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        kwargs = kwargs or {}
        low = torch.bfloat16
        if func in PRODUCTS and any(torch.is_tensor(a) and a.dtype == low and not a.is_cuda for a in args):
            result = func(
                *(a.float() if torch.is_tensor(a) and a.dtype == low else a for a in args), **kwargs
            )
            if torch.is_tensor(result):
                return result.to(low)
            return tuple(one if one is None else one.to(low) for one in result)
        return func(*args, **kwargs)


def scores(folder: Path) -> dict[str, float]:
    """'DG-Net mAP' → 89.1 and so on: every number of a run's final tables."""
    found = {}
    for table in read_tables(folder / "results.json"):
        for name, *values in table["rows"]:
            for column, value in zip(table["columns"][1:], values, strict=True):
                found[f"{name}: {column}"] = value
    return found


def train(options: list[str]) -> int:
    """The run itself, in this process."""
    from dgnet_fast.train import main as train_main

    if torch.cuda.is_available() or cpu_multiplies_bf16():
        return train_main(options)
    with ProductsInFloat32():
        return train_main(options)


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: score, each precision's values, mean ± deviation, their difference, also in its standard errors."""
    lines = [
        "| score | fp32 | bf16 | difference of the means | in standard errors |",
        "|---|---|---|--:|--:|",
    ]
    for name in runs[0]["scores"]:
        values = {p: [r["scores"][name] for r in runs if r["precision"] == p] for p in PRECISIONS}
        if name.startswith("chance") or name.startswith("structure"):
            continue
        mean = {p: statistics.mean(v) for p, v in values.items()}
        difference = mean["bf16"] - mean["fp32"]
        error = sum(statistics.variance(v) / len(v) for v in values.values()) ** 0.5 if len(runs) > 2 else 0.0
        cells = [
            f"{mean[p]:.3g} ± {statistics.stdev(v) if len(v) > 1 else 0:.2g} ({', '.join(f'{x:g}' for x in v)})"
            for p, v in values.items()
        ]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {difference:+.3g} | {abs(difference) / error if error else 0:.1f} |"
        )
    return lines


def one_run(folder: Path, seed: int, precision: str, options: list[str]) -> dict[str, Any] | str:
    """A run in a process of its own: what the report keeps of it, or why there is nothing to keep."""
    out = folder / f"{precision}-{seed}"
    call = [
        "--baseline",
        "false",
        *options,
        "--seed",
        str(seed),
        "--amp",
        PRECISIONS[precision],
        "--out",
        str(out),
    ]
    code = f"import sys; from benchmarks.precision import train; sys.exit(train({call!r}))"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=RESULTS.parents[1])
    if done.returncode or not (out / "results.json").is_file():
        why = "failed" if done.returncode else "ended without scores; is there a --max-steps?"
        return f"the {precision} run of seed {seed} {why}"
    seconds = time.perf_counter() - begin
    return {"precision": precision, "seed": seed, "seconds": seconds, "scores": scores(out)}


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__, allow_abbrev=False
    )
    made.add_argument("--seeds", type=int, default=3, help="runs of each precision")
    made.add_argument("--jobs", type=int, default=1, help="runs at a time")
    made.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the report goes")
    args, options = made.parse_known_args(arguments)
    if args.seeds < 1:
        made.error(f"--seeds is {args.seeds}; allowed: at least 1")
    if args.jobs < 1:
        made.error(f"--jobs is {args.jobs}; allowed: at least 1")
    head = machine(full=True)
    runs: list[dict[str, Any]] = []
    name = f"{head['name']}-{head['date']}-precision".lower().replace(" ", "-")
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [(seed, precision) for seed in range(args.seeds) for precision in PRECISIONS]
    failed = False
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        calls = {pool.submit(one_run, Path(folder), *one, options) for one in wanted}
        try:
            while calls:
                ended, calls = wait(calls, return_when=FIRST_COMPLETED)
                for call in ended:
                    run = call.result()
                    if isinstance(run, str):
                        print(f"benchmarks.precision: {run}", file=sys.stderr)
                        failed = True
                        continue
                    runs = sorted([*runs, run], key=lambda one: wanted.index((one["seed"], one["precision"])))
                    # after every run: a session cut short keeps what it measured
                    (args.out / f"{name}.json").write_text(
                        json.dumps({"machine": head, "runs": runs}, indent=1)
                    )
                    print(
                        f"{run['precision']} seed {run['seed']}: {run['seconds']:.0f} s, mAP {run['scores'].get('DG-Net: mAP')}",
                        flush=True,
                    )
                if failed:  # begin no other; those under way count
                    calls = {call for call in calls if not call.cancel()}
        except BaseException:  # Ctrl-C: the runs under way have had it too, and no other is begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        return 1
    lines = [f"# bf16 against fp32: {head['name']}, {head['date']}", ""]
    lines += [f"- {key}: {head[key]}" for key in ("cpu", "versions", "commit")]
    lines += [
        f"- command: python -m benchmarks.precision --seeds {args.seeds} --jobs {args.jobs} {' '.join(options)}".rstrip()
    ]
    if not (torch.cuda.is_available() or cpu_multiplies_bf16()):
        lines += ["- bf16 products computed in float32 and rounded: this CPU has no bf16 arithmetic"]
    lines += ["", f"Mean ± standard deviation of {args.seeds} seeds (their values).", "", *table(runs), ""]
    (args.out / f"{name}.md").write_text("\n".join(lines))
    print("\n".join(table(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
