"""Faults of commands: what fails at the start changes nothing, what two do at once is refused, what ends is said. The id
of each test is its row in docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from dgnet_fast import evaluate, generate, quality, search, teacher, train, visualize
from dgnet_fast.checkpoints.files import save_atomically
from dgnet_fast.checkpoints.runs import latest_checkpoint, read_run
from dgnet_fast.cli.parser import Parser, explanation, run_command
from dgnet_fast.generation.sets import read_manifest
from dgnet_fast.report.files import locked
from dgnet_fast.report.log import read_metrics
from dgnet_fast.training import run as training_run
from dgnet_fast.training.loop import StopSignal
from tests.stress.jobs import OPTIONS
from tests.tiny import arguments
from tests.tiny_run import draw_people, fails, tiny_run

PLAIN = OPTIONS | {"teacher": "", "pretrained": "", "generator_steps": 0, "max_iter": 2}


def folder_data(base, names=("a", "b", "c"), tests=("x", "y")):
    for split, people in (("train", names), ("query", tests), ("gallery", tests)):
        for k, name in enumerate(people):
            draw_people(base / split / name, 1, 3 + k % 2)
    return base


def words(out, *more, **changes):
    return ["-q", *arguments(PLAIN | changes), "--out", out, *more]


def run_main(main, given):
    return main([str(word) for word in given])


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run on pictures in folders, stopped after its first step."""
    base = tmp_path_factory.mktemp("faults")
    data = folder_data(base / "data")
    given = words(base / "run", "--max-steps", 1, data="folder", data_root=data, skip_unreadable=True)
    assert run_main(train.main, given) == 0
    return base


@pytest.fixture
def again(stopped, tmp_path):
    """A copy of that run."""
    return shutil.copytree(stopped / "run", tmp_path / "run")


# A, B, 1: a start that fails changes nothing


@pytest.mark.parametrize(
    "more, problem",
    [
        (["--batch_size", 999], "batch_size is 999; allowed: 2 .* to 10, the number of training pictures"),
        (["--batch-size", 1], "batch_size is 1; allowed: 2"),
        (["--teacher", "auto", "--teacher_batch", 200], "teacher_batch is 200; allowed: at most 20"),
        (["--real-batch", 200], "real_batch is 200; allowed: at most 20"),
        (["--baseline", "true", "--baseline-batch", 200], "baseline_batch is 200; allowed: at most 20"),
        (["--real-batch", 3], "real_batch is 3; allowed: even numbers"),
        (["--pretrained", "nowhere.pth"], "no such weight file: .*nowhere.pth"),
        (["--pretrained", "teacher"], "pretrained is 'teacher' and there is no teacher"),
        (["--teacher", "nobody"], "teacher is 'nobody'"),
        (["--gen.dim", 8], "step_00000001.pt does not fit the options"),
        (["--data_root", "/nowhere"], "if it has moved"),
    ],
)
def test_a_a_resume_that_fails_changes_nothing(again, capsys, more, problem):
    before = files_of(again)
    assert run_main(train.main, ["--resume", "--out", again, *more]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(problem, said), said
    assert files_of(again) == before


@pytest.mark.parametrize("option", ["pretrained", "teacher"])
def test_r_a_start_that_fails_leaves_no_folder(tmp_path, capsys, option):
    assert run_main(train.main, words(tmp_path / "run", **{option: "nowhere.pth"})) == 1
    assert not (tmp_path / "run").exists() and "nowhere.pth" in capsys.readouterr().err


def test_b_other_people_are_refused(again, tmp_path, capsys):
    other = folder_data(tmp_path / "other", ("a", "b", "z"))
    before = files_of(again)
    assert run_main(train.main, ["--resume", "--out", again, "--data_root", other]) == 1
    assert "class 2 is 'c' there and 'z' in the training set" in capsys.readouterr().err
    assert files_of(again) == before


def test_1_options_that_differ_from_the_checkpoint_are_refused_unless_given(again, capsys):
    path = again / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)[:-1]
    path.write_text("".join(lines).replace("lr_g: 0.0001", "lr_g: 0.01"))
    assert run_main(train.main, ["-q", "--resume", "--out", again]) == 1
    said = capsys.readouterr().err
    assert (
        "lr_g is 0.01 in config.yaml" in said and "was trained with 0.0001; give --lr_g to say which" in said
    )
    assert run_main(train.main, ["-q", "--resume", "--out", again, "--lr-g", 0.01]) == 0
    assert read_run(latest_checkpoint(again))["config"]["lr_g"] == 0.01


def test_l_the_options_of_a_run_hold(again, stopped, monkeypatch, tmp_path, capsys):
    saved = read_run(latest_checkpoint(again))["config"]
    assert saved["data_root"] == str(stopped / "data") and saved["skip_unreadable"]
    bad = stopped / "data" / "gallery" / "x" / "bad.png"
    bad.write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    try:
        with pytest.warns(UserWarning, match="left out 1 of"):
            assert run_main(evaluate.main, [again, "--device", "cpu", "--data-cache", "off"]) == 0
    finally:
        bad.unlink()


# C: known at the start


def test_c_data_that_cannot_be_scored_or_trained_on_is_refused_at_once(tmp_path, capsys, again, monkeypatch):
    data = folder_data(tmp_path / "data")
    (data / "query" / "x").rename(data / "query" / "nobody")
    (data / "query" / "y").rename(data / "query" / "nobody2")
    one = folder_data(tmp_path / "one", ("a",))
    for root, problem in ((data, "no query has a valid match"), (one, "the training split has 1 identity")):
        assert run_main(train.main, words(tmp_path / "new", data="folder", data_root=root)) == 1
        assert problem in capsys.readouterr().err and not (tmp_path / "new").exists()
    monkeypatch.setattr("dgnet_fast.retrieval.extractor.Extractor.split", None)  # no feature is computed
    assert "no query has a valid match" in fails(capsys, evaluate.main, ["-q", again, "--root", data])


def test_c_a_part_that_cannot_be_scored_is_named_and_the_rest_stays(tmp_path, stopped, capsys):
    data = shutil.copytree(stopped / "data", tmp_path / "data")
    shutil.copytree(data / "query" / "x", data / "multi-query" / "x")
    given = [stopped / "run", "--root", data, "--device", "cpu", "--json", tmp_path / "deep" / "s.json"]
    assert run_main(evaluate.main, given) == 0
    (table,) = json.loads((tmp_path / "deep" / "s.json").read_text())["tables"]
    assert [row[0] for row in table["rows"]] == ["single query", "multi query"]
    assert table["rows"][1][1] is None and any("multi query: not scored" in note for note in table["notes"])


@pytest.mark.parametrize("option", ["--json", "--rank-list", "--roc"])
def test_c_outputs_are_tried_before_the_work(stopped, tmp_path, capsys, monkeypatch, option):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("dgnet_fast.checkpoints.loading.load_encoder", None)
    assert "file" in fails(capsys, evaluate.main, [stopped / "run", option, tmp_path / "file" / "x.png"])
    (tmp_path / "x.png").mkdir()
    assert "is a folder; allowed" in fails(
        capsys, evaluate.main, [stopped / "run", option, tmp_path / "x.png"]
    )
    if option != "--json":
        said = fails(capsys, evaluate.main, [stopped / "run", option, "x.jpg"])
        assert f"{option} is 'x.jpg'; allowed: a name ending in .png" in said


def test_c_a_file_in_the_place_of_a_folder_is_said(stopped, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    for main, given in (
        (train.main, words(tmp_path / "file")),
        (visualize.main, ["-q", stopped / "run", "--out", tmp_path / "file"]),
        (generate.main, ["set", stopped / "run", "--source", "folder:gallery", "--count", 1, "--out", tmp_path / "file", "-q"]),
    ):  # fmt: skip
        assert re.search("file: it is a file|file is a file|exists and holds no", fails(capsys, main, given))
    assert (tmp_path / "file").read_text() == "kept"


# 4: the teacher


def test_4_a_teacher_killed_before_its_first_state_does_not_repeat_its_log(tmp_path):
    given = words(tmp_path / "t", teacher_steps=2)
    (tmp_path / "t" / "teacher").mkdir(parents=True)
    (tmp_path / "t" / "teacher" / "metrics.jsonl").write_text('{"step": 1, "phase": "teacher", "id": 9.0}\n')
    assert run_main(teacher.main, given) == 0
    assert [r["step"] for r in read_metrics(tmp_path / "t" / "teacher" / "metrics.jsonl")] == [1, 2]
    # killed after the teacher was saved, before the rest was: it goes on
    for name in ("net_last.pth", "results.json", "opts.yaml"):
        (tmp_path / "t" / name).unlink()
    assert run_main(teacher.main, given) == 0
    assert (tmp_path / "t" / "results.json").is_file() and (tmp_path / "t" / "net_last.pth").is_file()
    assert run_main(teacher.main, given) == 1


def test_b_a_teacher_of_other_people_is_not_continued(tmp_path, capsys):
    given = words(tmp_path / "t", teacher_steps=2)
    (tmp_path / "t" / "teacher").mkdir(parents=True)
    state = {"step": 1, "about": {"class names": ["x"]}, "teacher": {}, "optimiser": {}}
    save_atomically(state, tmp_path / "t" / "teacher" / "state.pt")
    assert run_main(teacher.main, given) == 1
    said = capsys.readouterr().err
    assert "no config.yaml" in said or "other class names" in said


# 6, Q: two at once


def test_6_two_in_one_folder_are_refused(again, tmp_path, capsys):
    with locked(again):
        said = fails(capsys, train.main, ["-q", "--resume", "--out", again])
        assert f"{again} is in use by process {os.getpid()}" in said
    with locked(tmp_path / "set"):
        given = ["set", again, "--source", "folder:gallery", "--count", 2, "--out", tmp_path / "set", "-q"]
        assert "is in use by process" in fails(capsys, generate.main, given)


def test_6_two_additions_to_an_index(stopped, tmp_path, capsys):
    pytest.importorskip("faiss")
    pictures = sorted((stopped / "data" / "gallery").rglob("*.png"))
    common = [stopped / "run", "-q", "--device", "cpu"]
    given = [*common, "--gallery", *pictures[:2], "--save", tmp_path / "index"]
    assert run_main(search.main, given) == 0
    with locked(tmp_path / "index"):
        given = [*common, "--gallery", tmp_path / "index", "--add", *pictures[2:]]
        assert "is in use by process" in fails(capsys, search.main, given)


# 9: a set that is continued with another batch


def test_9_a_set_is_continued_with_its_own_batch(tmp_path, capsys):
    run = tiny_run(tmp_path / "run")[1]

    def make(out, batch):
        given = [
            "set",
            run,
            "--source",
            "synthetic:gallery",
            "--count",
            7,
            "--out",
            out,
            "--batch",
            batch,
            "-q",
        ]
        assert run_main(generate.main, given) == 0
        return {row.file: (out / row.file).read_bytes() for row in read_manifest(out)}

    whole = make(tmp_path / "whole", 3)
    part = tmp_path / "part"
    make(part, 3)
    lines = (part / "manifest.csv").read_text().splitlines(keepends=True)
    (part / "manifest.csv").write_text("".join(lines[:3]))
    for path in sorted(part.rglob("*.png"))[2:]:
        path.unlink()
    assert make(part, 5) == whole
    (part / "manifest.csv").write_text("".join(lines).replace(",0,", ",1,", 1))
    given = ["set", run, "--source", "synthetic:gallery", "--count", 7, "--out", part, "-q"]
    assert run_main(generate.main, given) == 1 and "manifest.csv is damaged" in capsys.readouterr().err


# 8: programs


def test_8_scripts_that_nobody_published_are_not_run(tmp_path, capsys):
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "x.pt"))
    draw_people(tmp_path / "p", 2, 2)
    said = fails(
        capsys, quality.main, [tmp_path / "p", "--real", tmp_path / "p", "--inception", tmp_path / "x.pt"]
    )
    assert "is none of the published files" in said and "--trust-scripts" in said


# 11, M, Q: signals


def test_11_signals_are_saved_and_told(monkeypatch):
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.requested and stop.stopped(3).signal == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignal() as stop, pytest.raises(KeyboardInterrupt), stop.at_once():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_11_a_signal_in_the_last_moments_is_not_swallowed(tmp_path, monkeypatch, capsys):
    plain = training_run.Run.baseline

    def late(self, stop):
        found = plain(self, stop)
        signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(training_run.Run, "baseline", late)
    given = words(tmp_path / "run", baseline=True, teacher_steps=1, max_iter=1)
    assert run_main(train.main, given) == 128 + signal.SIGTERM
    assert "stopped after step 1, saved" in capsys.readouterr().out


def test_m_training_from_a_thread_of_another_program(tmp_path):
    found = []
    torch.manual_seed(5)
    wanted = torch.rand(2)
    torch.manual_seed(5)
    thread = threading.Thread(
        target=lambda: found.append(run_main(train.main, words(tmp_path / "run", max_iter=1)))
    )
    thread.start()
    thread.join()
    assert found == [0] and torch.equal(torch.rand(2), wanted)


# I: one line


@pytest.mark.parametrize(
    "error, said",
    [
        (
            OSError(28, "No space left on device", "/x/a.pt"),
            "/x/a.pt: No space left on device (nothing that was",
        ),
        (ValueError("a\n\x1b[31mred\udcff"), r"a \x1b[31mred\udcff"),
        (MemoryError(), "there is not enough memory: MemoryError"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "not enough memory",
        ),
    ],
)
def test_i_errors_are_one_line_with_their_file(error, said, capsys):
    def body():
        raise error

    assert run_command(body, "x") == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_i_an_empty_word_is_no_traceback(capsys):
    assert "unknown option ''" in fails(capsys, evaluate.main, ["run", ""], status=2)
    made = Parser(prog="python -m dgnet_fast.x")
    made.add_argument("--out", type=Path)
    assert str(made.parse_args(["--out=~/x"]).out) == os.path.expanduser("~/x")
    assert "\n" not in explanation(OSError(2, "x", b"a\nb"))
