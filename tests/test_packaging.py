"""Rules of the house that a machine can check, and what an installed package must do."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import dgnet_fast.kernels
import pytest
import torch

import dgnet_fast
from dgnet_fast import extension
from dgnet_fast.extension import choose
from dgnet_fast.extension.cpu_level import FLAGS, cpu_level, level_of

ROOT = Path(__file__).parents[1]
LONGEST = 450


def tracked() -> list[Path]:
    """Files that git tracks or would add; skips where this is no checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def test_source_files_are_short():
    sources = [path for path in tracked() if path.suffix in {".py", ".cpp", ".cu", ".h"}]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert lengths and not {name: length for name, length in lengths.items() if length > LONGEST}


def test_kernels_know_no_autograd_and_no_modules():
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            for name in names:
                assert not re.search(r"torch\.(autograd|nn|library)\b|^dgnet_fast\.(?!kernels)", name), (
                    path,
                    name,
                )


def test_no_paths_of_a_machine():
    # Spelt apart, so that this file does not name one.
    pattern = re.compile(
        "|".join([r"/wor" + r"k/\w", r"/hom" + r"e/\w", r"/Use" + r"rs/\w", r"\.\./sha" + "red"])
    )
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        assert not pattern.search(text), (path, pattern.search(text))


def test_constraints_pin_the_tested_set():
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = dict(line.split(";")[0].strip().lower().split("==") for line in lines if line)
    assert pins["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    for requirement in [*project["dependencies"], *extras]:
        name = re.match(r"[A-Za-z0-9_-]+", requirement)[0].lower()
        assert name in pins or name in ("dgnet-fast", "pre-commit"), requirement


def test_promised_pythons_are_the_resolved_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3." in text]
    resolved = re.search(r'^PYTHONS="([^"]+)"', (ROOT / ".ci" / "resolve").read_text(), re.MULTILINE)
    assert stated == resolved[1].split() and project["requires-python"] == f">={stated[0]}"


def test_a_source_distribution_holds_every_source(tmp_path):
    rooms = ("dgnet_fast", "kernels", "csrc", "tests", "docs", ".ci")
    sources = {str(path.relative_to(ROOT)) for path in tracked()}
    sources = {
        name for name in sources if name.split("/")[0] in rooms or name.count("/") == 0 and name[0] != "."
    }
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with tarfile.open(tmp_path / made.stdout.splitlines()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert not sources - held


def test_levels_of_the_cpu():
    flags = {level: set(itertools.chain(*list(FLAGS.values())[: k + 1])) for k, level in enumerate(FLAGS)}
    assert {level: level_of(flags[level]) for level in FLAGS} == {level: level for level in FLAGS}
    assert level_of(set()) == "v1" and level_of(flags["v4"] - {"fma"}) == "v2"


def test_level_is_read_from_every_core(tmp_path):
    small, large = (" ".join(itertools.chain(*list(FLAGS.values())[:k])) for k in (2, 3))
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {large}\n\nflags\t\t: fpu {small}\n")
    assert cpu_level(tmp_path / "cpuinfo") == "v3"
    assert cpu_level(tmp_path / "none") == "v2"


def test_the_highest_build_that_runs_is_chosen():
    wheel = dict.fromkeys(("v2", "v3", "v4"), Path())
    assert [choose(wheel, cpu) for cpu in ("v2", "v3", "v4")] == ["v2", "v3", "v4"]
    assert choose(wheel, "v4", wanted="v2") == "v2"
    assert choose({"plain": Path()}, "plain") == choose({"plain": Path()}, "v3") == "plain"
    for built, cpu, wanted, message in (
        (wheel, "v1", None, "needs a CPU of level x86-64-v2"),
        (wheel, "v3", "v4", r"DGNET_FAST_CPU is 'v4'; allowed on this machine: v2, v3"),
        ({"v4": Path()}, "v3", None, "built for x86-64-v4 and this CPU is x86-64-v3"),
        ({}, "v3", None, "pip install -e ."),
    ):
        with pytest.raises(ImportError, match=message) as caught:
            choose(built, cpu, wanted)
        assert "\n" not in str(caught.value)


PARTS = {"upsample_border": "upsample_conv", "upsample_weights": "upsample_conv"}
"""Operators that only another one calls: its rows of the benchmarks are theirs, and they share a file of tests."""


def test_every_op_has_its_name_in_every_room():
    from benchmarks.ops_table import op_names
    from dgnet_fast.ops.registry import TABLE

    assert not {PARTS.get(op, op) for op in TABLE} - set(op_names())  # each is benchmarked
    for op, devices in TABLE.items():
        bodies = {body.name for row in devices.values() for body in row}
        tests = "test_upsample_ops.py" if op in PARTS else f"test_{op}.py"
        rooms = [ROOT / "dgnet_fast" / "ops" / f"{op}.py", ROOT / "tests" / "ops" / tests]
        rooms += [ROOT / "csrc" / f"{op}.cpp"] if "cpp" in bodies else []
        rooms += [ROOT / "csrc" / f"{op}.cu"] if "cuda" in bodies else []
        rooms += [ROOT / "kernels" / f"{op}.py"] if "triton" in bodies else []
        assert not [str(room) for room in rooms if not room.exists()]


def test_kernels_install_as_a_subpackage():
    assert dgnet_fast.kernels.__name__ == "dgnet_fast.kernels"
    found = "import dgnet_fast.kernels as k; print(k.__file__)"
    outside = subprocess.run([sys.executable, "-c", found], cwd="/", capture_output=True, text=True)
    assert outside.returncode == 0 and "kernels" in outside.stdout, outside.stderr


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import dgnet_fast", ("torch", "numpy", "yaml")),
        ("import dgnet_fast.train as c; c.parser().format_help()", ("torch", "numpy", "cv2", "matplotlib")),
        ("import dgnet_fast.teacher as c; c.parser().format_help()", ("torch", "numpy", "cv2", "matplotlib")),
        ("import dgnet_fast.training.run", ("triton", "matplotlib", "scipy", "skimage", "tensorboard")),
    ],
)
def test_imports_are_light(code, heavy):
    def imported(code: str) -> set[str]:
        shown = f"{code}; import sys; print(*set({heavy}) & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    found = imported(code)
    assert not found or ("training" in code and found <= imported("import torch"))


def run_with_plain_malloc(code: str, **environment: str) -> str:
    """What a process of its own prints, whatever malloc is told here."""
    settings = {**os.environ, "GLIBC_TUNABLES": "", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.skipif(not dgnet_fast.malloc_kept, reason="malloc is not glibc's, or DGNET_FAST_MALLOC=0")
@pytest.mark.parametrize("setting, rounds", [("1", 30), ("0", 2)])
def test_large_tensors_stay_on_the_heap(setting, rounds):
    # 64 MiB freed and asked for again: a mapped block faults in its 16,384 pages every time, a kept one none
    # once the heap has settled (up to about ten rounds with glibc 2.36, whose aligned blocks fragment at
    # first).
    code = (
        "import resource, torch, dgnet_fast.extension\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        f"for _ in range({rounds}): torch.ones(2**24)\n"
        "before = faults()\n"
        "for _ in range(4): torch.ones(2**24)\n"
        "print(faults() - before, dgnet_fast.malloc_kept)"
    )
    faults, kept = run_with_plain_malloc(code, DGNET_FAST_MALLOC=setting).split()
    assert kept == str(setting == "1")
    assert int(faults) < 1000 if setting == "1" else int(faults) > 60_000


needs_allocator = pytest.mark.skipif(
    not dgnet_fast.allocator_installed,
    reason="_allocator is not built for this torch, or DGNET_FAST_MALLOC=0",
)


@needs_allocator
def test_freed_tensors_make_room_for_tensors_of_their_size():
    # twenty tensors of 8 MiB made again five times between small ones: torch's allocator grows the heap by twenty (so it
    # does with glibc 2.36; a later one may learn)
    code = (
        "import ctypes, sys, torch\n"
        "{before}\n"
        "import dgnet_fast.extension\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]\n"
        "small = lambda: [torch.empty(n) for n in range(40)]\n"
        "kept = [(torch.empty(2**21), small()) for _ in range(40)]\n"
        "before = libc.sbrk(0)\n"
        "for _ in range(5):\n"
        "    for k in range(0, 40, 2):\n"
        "        kept[k] = kept[k][1], small()\n"
        "        kept[k] = torch.empty(2**21), kept[k]\n"
        "print(libc.sbrk(0) - before)"
    )
    torchs = int(run_with_plain_malloc(code.format(before="sys.modules['dgnet_fast._allocator'] = None")))
    ours = int(run_with_plain_malloc(code.format(before="")))
    assert ours <= 16 * 2**20
    if torchs < 100 * 2**20:
        pytest.skip(
            f"torch's allocator grows the heap by {torchs / 2**20:.0f} MiB only: nothing to tell apart"
        )


@needs_allocator
@pytest.mark.parametrize("end", ["del x", "pass"])
def test_memory_from_before_the_import_goes_back_to_torch(end):
    # oneDNN's tensors are freed by whichever allocator is in place then
    run_with_plain_malloc(
        "import torch\n"
        "x = [torch.randn(n, n).to_mkldnn() for n in (3, 100, 2000)]\n"
        "import dgnet_fast.extension\n"
        "assert dgnet_fast.allocator_installed\n"
        f"{end}"
    )


@needs_allocator
def test_allocated_tensors_are_as_torch_wants_them():
    assert all(torch.empty(n, dtype=torch.uint8).data_ptr() % 64 == 0 for n in range(300))
    grown = torch.arange(5).resize_(100_000)
    assert grown[:5].tolist() == [0, 1, 2, 3, 4]
    assert torch.empty(0).data_ptr() == 0
    with torch.profiler.profile(profile_memory=True) as recorded:
        torch.ones(2**20)
    assert sum(max(0, event.self_cpu_memory_usage) for event in recorded.key_averages()) >= 2**22
    for bytes_wanted in (2**50, 2**63 - 1):
        with pytest.raises(RuntimeError, match=f"can't allocate memory.*{bytes_wanted} bytes"):
            torch.empty(bytes_wanted, dtype=torch.uint8)


@needs_allocator
@pytest.mark.parametrize("setting", [{"DGNET_FAST_MALLOC": "0"}, {"THP_MEM_ALLOC_ENABLE": "1"}])
def test_allocator_is_left_alone_where_it_is_asked_for(setting):
    assert (
        run_with_plain_malloc("import dgnet_fast; print(dgnet_fast.allocator_installed)", **setting)
        == "False\n"
    )


def test_allocator_of_another_torch_is_not_used(monkeypatch):
    class Built:
        torch_version = "0.4.1"

        @staticmethod
        def install() -> bool:
            raise AssertionError("installed into a torch it was not built for")

    monkeypatch.setitem(sys.modules, "dgnet_fast._allocator", Built)
    monkeypatch.setattr(dgnet_fast, "_allocator", Built, raising=False)
    assert extension._install_allocator() is False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_extension_shares_torchs_openmp():
    # in a process of its own: optional packages of other tests bring runtimes of theirs
    code = "import dgnet_fast.extension; print({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("libgomp") <= 1, done.stdout
