"""Options, fixtures and the report of `pytest benchmarks/`.

    pytest benchmarks/                     few shapes, few rounds: minutes on two cores
    pytest benchmarks/ --full              every shape, dtype and layout, step at batch 8, cost curves
    pytest benchmarks/ --op adain_act      one operator (may be given several times)
    pytest benchmarks/ -k "step and not public"

At the end NAME.json, NAME.md and NAME.png are written to benchmarks/results/ (or --results DIR), NAME being the
machine and the date; a selection of benchmarks writes NAME-part instead. `python -m benchmarks.report NAME.json` makes
the other two again. With DGNET_REFERENCE=DIR the step is measured against the public code in DIR too.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
import torch

import dgnet_fast
from benchmarks import measure, report
from benchmarks.ops_table import op_names
from dgnet_fast.report.environment import collect_environment

RESULTS = Path(__file__).parent / "results"
ROWS = pytest.StashKey[list]()
MACHINE = pytest.StashKey[dict]()
CEILINGS = pytest.StashKey[measure.Ceilings]()


def pytest_addoption(parser):
    group = parser.getgroup("dgnet_fast")
    group.addoption(
        "--full", action="store_true", help="every shape, dtype and layout, more rounds, cost curves"
    )
    group.addoption("--op", action="append", default=[], metavar="NAME", help="measure only this operator")
    group.addoption("--results", type=Path, default=RESULTS, metavar="DIR", help="where the report goes")


def pytest_configure(config):
    config.stash[ROWS] = []
    config.stash[MACHINE] = machine(config.getoption("--full"))
    config.stash[CEILINGS] = measure.Ceilings(_device())
    for name in config.getoption("--op"):
        if name not in op_names():
            raise pytest.UsageError(
                f"--op {name}: there is no such operator, there are {', '.join(op_names())}"
            )


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "measured" in item.fixturenames:
            item.add_marker(pytest.mark.benchmark(timer=measure.STOPWATCH.read))
    order = [
        "test_plain.py",
        "test_step.py",
        "test_modules.py",
    ]  # agreement with the plain networks, then what is asked first
    items.sort(key=lambda item: order.index(item.path.name) if item.path.name in order else len(order))
    chosen = config.getoption("--op")
    if chosen:
        kept = [item for item in items if getattr(_case(item), "op", None) in chosen]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _case(item):
    return item.callspec.params.get("case") if hasattr(item, "callspec") else None


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def device() -> str:
    """cuda where there is one, else cpu: the CPU's figures come from machines without a GPU."""
    return _device()


@pytest.fixture
def full(request) -> bool:
    return request.config.getoption("--full")


@pytest.fixture
def ceilings(request) -> measure.Ceilings:
    """Ceilings of this session; each is measured when first asked for."""
    return request.config.stash[CEILINGS]


@pytest.fixture
def measured(request, benchmark, device, full, ceilings):
    """measured(call, setup=None, memory=None, clock=None, effort=None, **row): times it and reports the row.

    `memory` is a call whose peak memory is added. `clock` makes the call itself and returns seconds, where the
    device's own clock will not do. `row` is as in benchmarks/report.py, without seconds.
    """

    def measure_row(call=None, *, setup=None, memory=None, clock=None, effort=None, **row):
        benchmark.group = f"{row['section']}: {row['group']}"
        for limit in row.get("limit", []):
            ceilings.copy() if limit == "copy" else ceilings.matmul(limit.split()[1])
        effort = effort or (measure.FULL if full or device == "cuda" else measure.QUICK)
        row["seconds"] = measure.run(benchmark, clock or (lambda: measure.timed(call, device)), effort, setup)
        if memory is not None:
            row["peak_bytes"] = measure.peak_bytes(memory, device)
        request.config.stash[ROWS].append(row)
        path, found = results(request.config)  # after every row: a session cut short keeps what it measured
        report.write_json(found, path)
        report.write_markdown(found, path)
        return row

    return measure_row


def machine(full: bool) -> dict[str, object]:
    """What the figures belong to, for the head of the report."""
    found = collect_environment()
    gpu = torch.cuda.is_available()
    return {
        "name": found["gpus"][0] if gpu else f"{found['cpu']} {found['torch_threads']} threads",
        "date": datetime.date.today().isoformat(),
        "mode": "full" if full else "quick",
        "cpu": f"{found['cpu']}, {found['cpu_capability']}, {found['torch_threads']} threads",
        "versions": f"dgnet_fast {found['dgnet_fast']}, torch {found['torch']} (CUDA {found['torch_cuda']}), "
        f"Triton {found['triton']}, Python {found['python']}",
        "commit": found["git_commit"],
        "allocator": allocator(),
        "TF32": f"matmul {torch.backends.cuda.matmul.allow_tf32}, convolutions {torch.backends.cudnn.allow_tf32}"
        if gpu
        else "does not apply",
        "variables": found["variables"],
    }


def allocator() -> str:
    """Where the memory of CPU tensors comes from."""
    malloc = "large blocks kept" if dgnet_fast.malloc_kept else "malloc as the system has it"
    return f"{malloc}, {'dgnet_fast' if dgnet_fast.allocator_installed else 'torch'}'s allocator"


def notes(device: str) -> list[str]:
    """How to read the figures."""
    lines = [
        "Medians of all rounds. Bytes and FLOPs are the least work known for the call (each input read once, each "
        "output written once; nine taps for a 5×5 convolution after nearest upsampling; convolutions in the direct form, "
        "of whose multiplications conv3x3 does a quarter), the same for all rows of a case, so the least work can run "
        "above a ceiling.",
        "Peak memory of operators and modules: most bytes PyTorch's allocator held during forward and backward, "
        "above what it held before; of steps: on a GPU likewise, on a CPU the largest resident set of the step's own "
        "process, Python and PyTorch included.",
    ]
    if device == "cuda":
        lines.append(
            "CUDA events around each call; 1 GiB is written before every round: the L2 cache is flushed, and the host gets "
            "ahead by a third of a millisecond, so that launches of operators are not in their figures."
        )
    else:
        lines.append("Wall clock; caches are not flushed between rounds.")
        lines.append(
            "Steps `malloc as is` ran with malloc and torch's allocator as they come (DGNET_FAST_MALLOC=0), all others "
            "with what importing dgnet_fast sets, whichever side."
        )
        if measure.emulates_bf16(device):
            lines.append(
                "This CPU has no bf16 arithmetic: PyTorch emulates products, on all sides, far slower than fp32; the "
                "matmul bf16 ceiling is the emulation's, which convolutions can beat."
            )
    return lines


def _is_whole(config) -> bool:
    chosen = config.getoption("--op") or config.option.keyword or config.option.markexpr
    here = Path(__file__).parent
    return not chosen and all(Path(argument).resolve() == here for argument in config.args)


def results(config) -> tuple[Path, dict[str, object]]:
    """Where the report goes, without suffix, and what is in it so far."""
    full = config.getoption("--full")
    found = {
        "machine": config.stash[MACHINE],
        "ceilings": config.stash[CEILINGS].values,
        "notes": notes(_device()),
        "rows": config.stash[ROWS],
    }
    name = f"{found['machine']['name']} {found['machine']['date']} {'full' if full else ''}"
    name = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() + ("" if _is_whole(config) else "-part")
    return config.getoption("--results") / name, found


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[ROWS]:
        path, found = results(config)
        for file in report.write(found, path):
            terminalreporter.write_line(f"report: {file}")
