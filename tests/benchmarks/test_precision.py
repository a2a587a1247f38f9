"""benchmarks.precision: bf16 products as hardware makes them, and its table."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch.nn import functional as F

from benchmarks import precision
from benchmarks.precision import ProductsInFloat32, table


def test_products_are_sums_in_float32_rounded_once():
    x, weight = torch.randn(2, 8, 6, 5).bfloat16(), torch.randn(4, 8, 3, 3).bfloat16().requires_grad_()
    with ProductsInFloat32():
        y = F.conv2d(x, weight, padding=1)
        (gradient,) = torch.autograd.grad(y.sum(), weight)
    wide = weight.detach().float().requires_grad_()
    expected = F.conv2d(x.float(), wide, padding=1)
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), wide)[0].bfloat16())


def test_table_of_means_and_standard_errors():
    values = {"fp32": (80, 82), "bf16": (80, 84)}
    runs = [
        {"precision": precision, "scores": {"chance: mAP": 1.0, "DG-Net: mAP": float(value)}}
        for precision, pair in values.items()
        for value in pair
    ]
    assert table(runs)[2:] == [
        "| DG-Net: mAP | 81 ± 1.4 (80, 82) | 82 ± 2.8 (80, 84) | +1 | 0.4 |"
    ]  # 1 / √(2/2 + 8/2)


def fake_runs(monkeypatch, answer):
    """Runs that take next to no time; (seed, precision) of those that were begun."""
    begun = []

    def one_run(folder, seed, name, options):
        begun.append((seed, name))
        if seed:
            time.sleep(0.5)  # long enough for what the end of an earlier one brings about
        return answer(seed, name)

    monkeypatch.setattr(precision, "one_run", one_run)
    return begun


def a_run(seed, name):
    return {"precision": name, "seed": seed, "seconds": 1.0, "scores": {"DG-Net: mAP": 80.0 + seed}}


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_report_of_all_runs_in_order(monkeypatch, tmp_path, jobs):
    begun = fake_runs(monkeypatch, a_run)
    assert precision.main(["--seeds", "2", "--jobs", jobs, "--out", str(tmp_path), "--max_iter", "7"]) == 0
    assert len(begun) == 4
    (kept,) = tmp_path.glob("*-precision.json")
    assert [(r["seed"], r["precision"]) for r in json.loads(kept.read_text())["runs"]] == sorted(
        begun, key=lambda one: (one[0], one[1] == "bf16")
    )
    report = kept.with_suffix(".md").read_text()
    assert "| DG-Net: mAP | 80.5 ± 0.71 (80, 81) |" in report and "--max_iter 7" in report


def test_a_failed_run_ends_it_and_keeps_what_was_measured(monkeypatch, tmp_path, capsys):
    begun = fake_runs(monkeypatch, lambda *one: a_run(*one) if one == (0, "fp32") else "the bf16 run failed")
    assert precision.main(["--seeds", "3", "--out", str(tmp_path)]) == 1
    assert begun[:2] == [(0, "fp32"), (0, "bf16")] and len(begun) <= 3  # the pool may have taken one more
    assert "the bf16 run failed" in capsys.readouterr().err
    (kept,) = tmp_path.iterdir()  # no report
    assert len(json.loads(kept.read_text())["runs"]) == 1


def test_an_interrupt_begins_no_other_run(monkeypatch, tmp_path):
    def interrupted(seed, name):
        raise KeyboardInterrupt

    begun = fake_runs(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        precision.main(["--seeds", "3", "--out", str(tmp_path)])
    assert len(begun) <= 3
