"""The profile of the step benchmark: what counts as busy, and where it is refused."""

from __future__ import annotations

import pytest

from benchmarks.step import busy_time, main


def test_busy_time_counts_overlaps_once():
    assert busy_time([(0, 10), (5, 12), (20, 30), (21, 22), (30, 31)]) == 23
    assert busy_time([(4, 6), (0, 2)]) == 4
    assert busy_time([]) == 0


@pytest.mark.slow
def test_a_profile_needs_a_gpu(capsys):
    small = ["--batch", "2", "--height", "144", "--width", "72"]
    assert main(["--profile", "--device", "cpu", *small]) == 2
    assert "allowed: --device cuda" in capsys.readouterr().err
