"""benchmarks.launches: what a step calls, and that it stays little."""

from __future__ import annotations

import argparse
from collections import Counter

import pytest
import torch

from benchmarks import launches
from tests.tiny import ALL_TERMS, tiny_config


def test_calls_and_bytes_by_part():
    x = torch.zeros(10, 3)
    with launches.Count() as counted:
        y = (x + 1).view(3, 10)  # 120 bytes each way; a view is nothing
        with (
            torch.profiler.record_function(launches.LABEL + "one part"),
            torch.profiler.record_function("other"),
        ):
            y.mul_(2)
        y.sum()
    assert counted.calls == {("update", "add"): 1, ("one part", "mul_"): 1, ("update", "sum"): 1}
    assert counted.bytes == {("update", "add"): 240, ("one part", "mul_"): 240, ("update", "sum"): 124}
    assert launches.rows(counted, 0) == [
        "| part | kernels | GB |", "|---|--:|--:|", "| update | 2 | 0.00 |", "| one part | 1 | 0.00 |",
    ]  # fmt: skip


@pytest.fixture
def tiny_count(monkeypatch):
    def count(precision: str) -> Counter[str]:
        config = tiny_config(teacher="given", erasing_p=0.5, **ALL_TERMS)
        monkeypatch.setattr(launches, "step_config", lambda args: config)
        args = argparse.Namespace(precision=precision)
        found = launches.count(args, train_encoder=True)
        assert {part for part, _ in found.calls} > {"real_part", "forward_pass", "teacher_part", "optimisers"}
        calls: Counter[str] = Counter()
        for (_, name), number in found.calls.items():
            calls[name] += number
        return calls

    return count


@pytest.mark.thorough
def test_a_step_calls_nothing_for_each_weight_or_norm_that_it_can_call_for_all(tiny_count):
    exact, low = tiny_count("fp32"), tiny_count("bf16")
    assert exact["lerp_"] == 0 and exact["_foreach_lerp_"] == 14  # a call for each group of a pass
    # what is left are activations, and the pieces that G's upsampling takes of its weights
    assert low["_to_copy"] - exact["_to_copy"] < 100, (low["_to_copy"], exact["_to_copy"])
    assert low["_foreach_copy_"] - exact["_foreach_copy_"] < 20
