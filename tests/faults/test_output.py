"""Where results and errors go when standard output or standard error is closed, full, or read by nobody. The id of each
test is its row in docs/reliability.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from dgnet_fast import (
    convert,
    demo,
    doctor,
    evaluate,
    export,
    quality,
    reproduce,
    search,
    transfer,
    translate,
    visualize,
)
from dgnet_fast.report.tables import read_tables
from dgnet_fast.training.results import BASELINE
from dgnet_fast.translation import transfer as comparison
from tests.stress.jobs import make_unit
from tests.tiny_run import draw_people, tiny_run


def test_q_what_reads_the_output_may_end(tmp_path):
    for module in ("dgnet_fast.doctor", "dgnet_fast.validate --data synthetic", "dgnet_fast --help"):
        command = f"{sys.executable} -m {module} 2>{tmp_path}/err | true"
        subprocess.run(["bash", "-c", command], check=False, cwd=os.getcwd())
        assert (tmp_path / "err").read_text() == ""


NO_ROOM = "it: standard output: No space left on device (nothing that was there before is lost)\n"
BODIES = {
    "prints": "lambda: print('1 ± 2')",
    "prints much": "lambda: print('x' * 100_000)",
    "shows its help": "lambda: Parser(prog='it', add_help=False, usage='1 ± 2').print_help()",
    "ends as --help does": "lambda: Parser(prog='it', usage='1 ± 2').parse_args(['--help'])",
    "fails": "lambda: open('/nowhere')",
    "has a wrong option": "lambda: Parser(prog='it').parse_args(['--x'])",
    "logs": "lambda: (Parser(prog='it').parse_args([]), logging.getLogger('dgnet_fast').warning('a line'), print('1 ± 2'))[0] and 0",
}


def ended(body, where, encoding="utf-8", unbuffered=""):
    """(status, output, errors) of a command whose streams go where the shell says."""
    code = "import logging, sys; from dgnet_fast.cli.parser import Parser, run_command; "
    code += f"sys.exit(run_command({BODIES[body]}, 'it'))"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" {where}',
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": unbuffered},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "body, where, encoding, status, out, err",
    [
        ("prints", "", "ascii", 0, "1 \\xb1 2\n", ""),
        ("prints", "", "utf-8", 0, "1 ± 2\n", ""),
        ("prints", ">&-", "utf-8", 0, "", ""),
        ("prints", ">/dev/full", "utf-8", 1, "", NO_ROOM),
        ("prints much", ">/dev/full", "utf-8", 1, "", NO_ROOM),
        ("ends as --help does", ">/dev/full", "utf-8", 1, "", NO_ROOM),
        ("fails", ">/dev/full", "utf-8", 1, "", "it: /nowhere: No such file or directory\n"),
        ("fails", "2>/dev/full", "utf-8", 1, "", ""),
        ("fails", "2>&-", "utf-8", 1, "", ""),
        ("has a wrong option", "2>/dev/full", "utf-8", 2, "", ""),
        ("logs", "2>/dev/full", "utf-8", 0, "1 ± 2\n", ""),
        ("logs", "2>&-", "utf-8", 0, "1 ± 2\n", ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_q_wherever_the_output_goes(body, where, encoding, status, out, err, unbuffered):
    assert ended(body, where, encoding, unbuffered) == (status, out, err)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("body", ["prints much", "shows its help", "ends as --help does"])
def test_q_a_reader_that_went_away_is_no_error(body, unbuffered):
    assert ended(body, "| true; exit ${PIPESTATUS[0]}", unbuffered=unbuffered)[::2] in ((141, ""), (0, ""))


FOUR = {"Rank-1": 40.0, "Rank-5": 50.0, "Rank-10": 60.0, "mAP": 30.0}
RESULTS = {
    "convert": (convert, "RUN --to run --out OUT", "OUT/config.yaml"),
    "demo": (demo, "RUN --port 0 --gallery none --device cpu", ""),
    "doctor": (doctor, "--json OUT", "OUT"),
    "evaluate": (evaluate, "RUN --device cpu --json JSON --rank-list OUT.png", "OUT.png JSON"),
    "export": (export, "RUN --network encoder --out OUT.onnx", "OUT.onnx"),
    "quality": (quality, "PEOPLE --real PEOPLE --pairs 4 --device cpu --json OUT", "OUT"),
    "reproduce": (reproduce, "ablation --seeds 2 --device cpu --out OUT", "OUT/ablation.md OUT/ablation.json"),
    "search": (search, "RUN --gallery PEOPLE --query PEOPLE --device cpu --rank-list OUT.png", "OUT.png"),
    "transfer": (
        transfer,
        "--from-data synthetic-a --to-data synthetic-b --translated SET --seeds 0 --device cpu --json JSON --out OUT",
        "OUT/results.json JSON",
    ),
    "translate": (translate, "UNIT PEOPLE --device cpu --out OUT", "OUT/dataset.csv"),
    "translate, exported": (translate, "UNIT --device cpu --export OUT", "OUT/config.yaml"),
    "visualize": (visualize, "RUN --people 2 --pictures 2 --device cpu", "RUN/report.html"),
}  # fmt: skip
"""The commands that are tried: their words, and the files that must be there although nothing could be printed."""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    base = tmp_path_factory.mktemp("given")
    tiny_run(base / "RUN")
    draw_people(base / "PEOPLE", people=2, shots=2)
    make_unit(base / "UNIT")
    words = [base / "UNIT", "synthetic-a:train", "--device", "cpu", "-q", "--out", base / "SET"]
    assert translate.main([str(word) for word in words]) == 0
    return base


@pytest.mark.parametrize("name", RESULTS)
def test_q_results_that_cannot_be_printed_are_an_error_and_are_kept(
    given, tmp_path, monkeypatch, capsys, name
):
    command, line, files = RESULTS[name]
    for extra in {"demo": ["flask"], "export": ["onnx", "onnxscript"], "search": ["faiss"]}.get(name, []):
        pytest.importorskip(extra)
    for one in given.iterdir():
        (shutil.copytree if one.name == "RUN" else os.symlink)(one, tmp_path / one.name)
    rows = ["teacher", BASELINE, *reproduce.FEATURES]
    monkeypatch.setattr(reproduce, "seed_cells", lambda *_: {row: [1.0, 2.0, 3.0] for row in rows})
    cells = {row: {0: FOUR} for row in (comparison.DIRECT, comparison.TRANSLATED, comparison.BOTH)}
    monkeypatch.setattr(comparison, "run_transfer", lambda *_: cells)
    monkeypatch.chdir(tmp_path)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert command.main(["-q", *line.split()]) == 1
    said = capsys.readouterr().err
    assert said.endswith(NO_ROOM.partition(":")[2]) and said.count("\n") == 1
    for file in files.split():
        assert os.path.getsize(file)
        if file.endswith(("JSON", ".json")):
            assert read_tables(file)
