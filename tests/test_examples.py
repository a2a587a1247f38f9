"""The examples in examples/ run, and the version stands in one place."""

from __future__ import annotations

import ast
import json
import re
import runpy
from pathlib import Path

from PIL import Image

from tests.tiny_run import tiny_run

ROOT = Path(__file__).parents[1]


def test_the_notebook(capsys):
    """Its cells, in order, in one namespace; what its code cells end with can be shown, and no output is stored in it."""
    cells = json.loads((ROOT / "examples" / "synthetic.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {"__name__": "__main__"}
    shown = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [] and cell["execution_count"] is None
        body = ast.parse("".join(cell["source"]))
        last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
        exec(compile(body, "synthetic.ipynb", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), "synthetic.ipynb", "eval"), names))
    assert sum(isinstance(one, Image.Image) for one in shown) == 3
    said = capsys.readouterr().out
    assert "4 people to train on" in said and "6 steps; report.html" in said and "features (3, " in said
    assert re.search(r"mean error \d+\.\d of 255", said) and re.search(
        r"Rank-1 [01]\.\d\d, mAP 0?\.?\d", said
    )


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
