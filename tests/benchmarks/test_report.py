"""The report of the benchmarks: exact numbers from a small results file made by hand, and the clocks behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import measure, report
from benchmarks.ops_table import OPS

ROOT = Path(__file__).resolve().parents[2]


def row(name: str, seconds: list[float], **changes) -> dict:
    plain = {
        "section": "op", "group": "adain_act decoder_first fp32 NCHW both", "name": name, "baseline": False,
        "dtype": "fp32", "layout": "NCHW", "batch": 8, "bytes": 4_000_000_000, "flops": 500_000_000_000,
        "limit": ["copy"], "seconds": seconds,
    }  # fmt: skip
    return plain | changes


RESULTS = {
    "machine": {"name": "Test CPU 2 threads", "date": "2026-01-02", "allocator": "malloc as the system has it"},
    "ceilings": {"copy": 10e9, "matmul fp32": 100e9, "matmul bf16": 50e9},
    "notes": ["Medians of all rounds."],
    "rows": [
        row("eager", [4.0, 6.0, 5.0], baseline=True, peak_bytes=30_000_000),
        row("compiled", [2.0, 2.5, 3.0, 2.5], baseline=True),
        row("cpp", [1.0, 9.0, 1.25], peak_bytes=12_500_000),
        row("cpp", [1.0], group="another group without a baseline"),
        row("plain", [40.0, 20.0, 30.0], section="step", group="after", baseline=True, bytes=None, limit=["matmul fp32"]),
        row("ours", [10.0, 8.0], section="step", group="after", dtype="bf16", bytes=None, limit=["matmul bf16"]),
        row("ours", [4.0], section="batch", group="batch 8", x=8),
        row("ours", [9.0], section="size", group="256x128", x=32768),
    ],
}  # fmt: skip


def test_medians_and_speedups_are_exact():
    rows = RESULTS["rows"]
    assert [report.median(one) for one in rows] == [5.0, 2.5, 1.25, 1.0, 30.0, 9.0, 4.0, 9.0]
    gains = report.speedups(rows)
    assert gains[:4] == [
        {"eager": 1.0, "compiled": 0.5},
        {"eager": 2.0, "compiled": 1.0},
        {"eager": 4.0, "compiled": 2.0},
        {},
    ]
    assert gains[5] == {"plain": 30 / 9}


def test_shares_of_the_ceilings():
    ceilings = RESULTS["ceilings"]
    assert report.shares(RESULTS["rows"][2], ceilings) == {
        "copy": pytest.approx(0.32)
    }  # 4 GB in 1.25 s of 10 GB/s
    assert report.shares(RESULTS["rows"][5], ceilings) == {"matmul bf16": pytest.approx(500 / 9 / 50)}
    assert report.shares(RESULTS["rows"][5], {}) == {}


def test_the_table_holds_the_figures():
    text = report.markdown(RESULTS, "figure.png")
    assert text.startswith("# Benchmarks: Test CPU 2 threads, 2026-01-02\n")
    assert "- allocator: malloc as the system has it" in text
    assert "copy 10 GB/s (read + written); matmul fp32 100 GFLOP/s; matmul bf16 50 GFLOP/s." in text
    # case, implementation, dtype, layout, median ms, rounds, GB/s, share, GFLOP/s, share, MB, × eager, × compiled
    assert "|  | cpp | fp32 | NCHW | 1,250 | 3 | 3.2 | 32 % | 400 |  | 12.5 (42 %) | 4.00 | 2.00 |" in text
    assert (
        "|  | ours | bf16 | channels_last | " not in text
        and "|  | ours | bf16 | NCHW | 9,000 | 2 | 55.6 | 111 % | 3.33 |" in text
    )


def test_what_is_asked_first_stands_first():
    text = report.markdown(RESULTS)
    line = "- ours, bf16 (after): 9,000 ms a step, 3.33 times as fast as plain"
    assert f"## In short\n\n{line}\n\n## Operators" in text
    assert "In short" not in report.markdown(RESULTS | {"rows": RESULTS["rows"][:4]})


def test_rows_of_a_group_stand_together():
    rows = [row("eager", [2.0], group="a"), row("eager", [3.0], group="b"), row("cpp", [1.0], group="a")]
    lines = report.section_table(rows, {})[2:]
    assert [line.split(" | ")[:2] for line in lines] == [["| a", "eager"], ["| ", "cpp"], ["| b", "eager"]]


def test_files_are_written(tmp_path):
    files = report.write(RESULTS, tmp_path / "here" / "machine-date")
    assert [file.name for file in files] == ["machine-date.json", "machine-date.md", "machine-date.png"]
    assert json.loads(files[0].read_text()) == RESULTS
    assert files[2].read_bytes().startswith(b"\x89PNG") and files[2].stat().st_size > 10_000
    assert files[1].read_text() == report.markdown(RESULTS, "machine-date.png")


def test_the_report_is_made_again_without_matplotlib(tmp_path, monkeypatch, capsys):
    file = report.write_json(RESULTS, tmp_path / "machine-date")
    monkeypatch.delitem(sys.modules, "benchmarks.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.main([str(file)]) == 0
    assert file.with_suffix(".md").read_text() == report.markdown(RESULTS)
    assert "pip install matplotlib" in capsys.readouterr().err


def test_the_command_names_what_it_cannot_read(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for argument, words in (("missing.json", "usage: "), (str(broken), "broken.json is not JSON")):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.report", argument], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_peak_memory_counts_what_is_held_at_once():
    size = 2**20

    def call():
        first = torch.ones(size)
        second = first * 2
        del first
        torch.cat([second, second])

    assert measure.peak_bytes(call, "cpu") == 3 * 4 * size  # second, and the concatenation twice as long


class Bench:
    """Takes the place of pytest-benchmark's fixture."""

    def pedantic(self, target, setup, rounds, warmup_rounds):
        self.rounds = rounds
        for _ in range(warmup_rounds + rounds):
            setup()
            target()


def test_rounds_follow_the_time_of_one():
    bench, clock, prepared = Bench(), iter(float(k) for k in range(1, 100)), []
    before = measure.STOPWATCH.read()
    effort = measure.Effort(warmups=2, seconds=9.0, least=3, most=5)
    seconds = measure.run(bench, lambda: next(clock), effort, lambda: prepared.append(1))
    assert seconds == [3.0, 4.0, 5.0, 6.0]  # 9 s of rounds of 2 s: four, after two to warm up
    assert len(prepared) == 6 and measure.STOPWATCH.read() - before == 18.0
    assert [effort.rounds(one) for one in (100.0, 1e-9)] == [3, 5]


def test_least_work_of_an_operator():
    case = next(one for one in OPS if one.op == "adain_act" and one.name == "decoder_first 8x128x64x32")
    x, code = torch.empty(8, 128, 64, 32, device="meta"), torch.empty(8, 128, device="meta")
    image, codes = x.nbytes, code.nbytes
    arguments = (x, code, code, None)
    assert case.work("forward", arguments, x) == (2 * image + 2 * codes, 7 * x.numel())
    assert case.work("backward", arguments, x) == (3 * image + 4 * codes, 12 * x.numel())
    assert case.work("both", arguments, x) == (5 * image + 6 * codes, 19 * x.numel())
    up = next(one for one in OPS if one.op == "upsample_conv" and one.name.startswith("decoder_up1 "))
    assert up.flops == {
        "forward": 2 * 9 * 128 * 64 * 8 * 128 * 64,
        "backward": 4 * 9 * 128 * 64 * 8 * 128 * 64,
    }
