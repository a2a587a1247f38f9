"""The table of faults in docs/reliability.md names tests that exist, and every fault has one."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_row_has_a_test_and_every_name_exists():
    page = (HERE.parent.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-R]|\d+|O, 3) (.*)$", page.partition("## Every fault")[2], re.MULTILINE)
    kinds = {kind for row, _ in rows for kind in row.split(", ")}
    assert kinds == {*"ABCDEFGHIJKLMNOPQR", *map(str, range(1, 12))}
    for row, text in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)\*`", text)
        assert named, row
        for file, begin in named:
            place = HERE.parent.parent / file if "/" in file else HERE / file
            assert f"def {begin}" in place.read_text(encoding="utf-8"), f"{row}: {file}::{begin}*"
