"""What documents and examples/ show: every command is accepted by its parser, and the examples run."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from dgnet_fast.__main__ import COMMANDS
from tests.test_names import MODULES
from tests.tiny_run import tiny_run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The dgnet-fast lines of the shell blocks of a page, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("dgnet-fast ")]


LINES = [pytest.param(line, id=f"{page.name}:{line[:60]}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_documents_is_accepted(line):
    words = shlex.split(line, comments=True)[1:]
    assert words[0].startswith("--") or words[0] in COMMANDS
    if words[0] in COMMANDS:
        MODULES[words[0]].parser().parse_args(words[1:])


def test_the_documents_show_commands():
    assert len(LINES) > 30


def test_the_fused_op_alone(capsys):
    runpy.run_path(str(ROOT / "examples" / "fused_op.py"))["main"]()
    assert re.search(r"largest difference from the reference \d\.\de-0[6-9]", capsys.readouterr().out)


def test_a_tracker_gets_our_features(tmp_path, capsys):
    _, run = tiny_run(tmp_path / "run")
    example = runpy.run_path(str(ROOT / "examples" / "track.py"))
    example["main"](str(run))
    assert "of 4 people were found again" in capsys.readouterr().out
    frame, boxes = example["drawn_frame"]([1, 2], 0)
    model = example["AppearanceModel"](str(run))
    alone = model.extractor.to_unit(model.extractor([frame[:, :64, ::-1].copy()])).numpy()
    assert abs(alone[0] @ model.get_features(boxes, frame)[0] - 1) < 1e-5


def test_the_version_stands_in_one_place():
    import dgnet_fast

    assert f"\nversion: {dgnet_fast.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {dgnet_fast.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert not re.search(r'^version = "', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
