"""What is said of torch.compile's work, and its time."""

from __future__ import annotations

import logging

import torch

from dgnet_fast.training.compiling import Compiling


def test_each_compilation_is_named_and_timed(caplog, fresh_compiler):
    now = [0.0]

    def clock() -> float:
        now[0] += 2.0
        return now[0]

    def double(x):
        return (x * 2).sin()

    compiling = Compiling(clock)
    compiling.watch()
    compiling.watch()
    x = torch.ones(3, requires_grad=True)
    with caplog.at_level(logging.INFO, logger="dgnet_fast"), compiling.part("doubling"):
        compiled = torch.compile(double, backend="aot_eager")
        compiled(x).sum().backward()
        compiled(x).sum().backward()
    said = [r.getMessage() for r in caplog.records if r.name == "dgnet_fast.training.compiling"]
    assert said[:2] == ["torch.compile: doubling ...", "torch.compile: doubling took 2.0 s"]
    assert set(said[2:]) <= {
        "torch.compile: doubling, backward ...",
        "torch.compile: doubling, backward took 2.0 s",
    }
    assert compiling.taken() == 2.0 * (len(said) // 2) and compiling.taken() == 0
