"""Our training step of UNIT against numbers recorded from the public code, see `tests/unit_parity.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import unit_parity

DATA = Path(__file__).parent / "cases" / "unit"
CASES = [
    pytest.param("unit_small"),
    pytest.param("unit_vgg_nsgan", marks=pytest.mark.slow),  # two steps, perceptual loss
    pytest.param(
        "unit_full", marks=[pytest.mark.slow, pytest.mark.thorough]
    ),  # 256×128 and full widths, a minute and a half
]


@pytest.mark.parametrize("name", CASES)
def test_the_training_step_gives_the_recorded_numbers(name):
    case = json.loads((DATA / f"{name}.json").read_text())
    rows = unit_parity.check_case(case)
    groups = {(step, group) for step in range(len(case["steps"])) for group in unit_parity.GROUPS}
    assert {(step, group) for step, group, *_ in rows} == {
        *groups,
        (len(case["steps"]) - 1, unit_parity.SAMPLE),
    }
    worst = [row for row in rows if not row[2] <= row[4]]
    assert not worst, worst


def test_every_recorded_case_is_checked():
    assert {path.stem for path in DATA.glob("*.json")} == {one.values[0] for one in CASES}
