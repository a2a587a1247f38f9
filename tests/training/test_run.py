"""Whole runs of the commands on a few synthetic people, in seconds: folder, results, interruptions."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_leaves

from dgnet_fast import evaluate, teacher, train
from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.checkpoints.public import export_public
from dgnet_fast.checkpoints.runs import read_run
from dgnet_fast.checkpoints.teachers import load_teachers
from dgnet_fast.config import load_config
from dgnet_fast.data import TrainBatches
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.report.log import read_metrics
from dgnet_fast.report.tables import read_tables
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.scoring import score_retrieval
from dgnet_fast.retrieval.tables import retrieval_row
from dgnet_fast.training import loop, teacher_loop
from tests.tiny import NETWORK, arguments

ROOT = Path(__file__).parents[2]
STEPS = 6
OPTIONS = NETWORK | {
    "synthetic_ids": 4,
    "synthetic_views": 4,
    "synthetic_test_ids": 3,
    "batch_size": 3,
    "max_iter": STEPS,
    "snapshot_save_iter": 2,
    "keep_checkpoints": 2,
    "log_iter": 1,
    "image_display_iter": 3,
    "display_size": 2,
    "warm_iter": 1,
    "warm_teacher_iter": 1,
    "warm_scale": 0.2,
    "erasing_p": 0.5,
    "teacher": "auto",
    "teacher_steps": 4,
    "teacher_batch": 4,
    "real_batch": 4,
    "generator_steps": 0,
    "num_workers": 1,
    "amp": "off",
    "device": "cpu",
}


def words(folder, **changes):
    return [*arguments(OPTIONS | changes), "--out", str(folder)]


def losses(folder):
    """metrics.jsonl line by line."""
    return (folder / "metrics.jsonl").read_text().splitlines()


def last_state(folder):
    return read_run(folder / "checkpoints" / f"step_{STEPS:08d}.pt")


def assert_same_outcome(folder, whole):
    """The interrupted run in ``folder`` gave what the uninterrupted one did, bit by bit."""
    assert losses(folder) == losses(whole)
    ours, theirs = last_state(folder), last_state(whole)
    for name, value in theirs["model"].items():
        assert torch.equal(value, ours["model"][name]), name
    assert (folder / "results.json").read_text() == (whole / "results.json").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(words(folder)) == 0
    return folder


def test_the_run_folder(whole):
    config = load_config(whole / "config.yaml")
    assert (config.ID_class, config.max_iter, config.gen.dim) == (4, STEPS, 4)
    assert json.loads((whole / "environment.json").read_text())
    records = read_metrics(whole / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    for k, record in enumerate(records):
        assert record["phase"] == "train" and all(math.isfinite(v) for n, v in record.items() if n != "phase")
        assert record["teacher_w"] == record["recon_s_w"] == pytest.approx(max(0, k - 1) * 0.2)
        assert ("teacher" in record) == ("recon_x_cyc" in record) == (k > 1)
    assert [p.name for p in sorted((whole / "checkpoints").iterdir())] == [
        "step_00000004.pt",
        "step_00000006.pt",
    ]
    assert [r["step"] for r in read_metrics(whole / "teacher" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not (whole / "teacher" / "state.pt").exists()
    for step in (3, 6):
        with Image.open(whole / "samples" / f"step_{step:08d}.png") as grid:
            assert grid.width >= 3 * 24 and grid.height >= 3 * 40
    assert any((whole / "tensorboard").iterdir())
    page = (whole / "report.html").read_text()
    assert "DG-Net" in page and "recon_x" in page
    assert not [p for p in whole.rglob("*") if p.name.endswith(".tmp")]


def test_the_results(whole, capsys):
    retrieval, pictures = read_tables(whole / "results.json")
    names = ["chance", "teacher (baseline)", f"baseline, trained as long ({STEPS + 4} steps)", "DG-Net"]
    assert [row[0] for row in retrieval["rows"]] == names
    assert re.search(
        r"DG-Net beside baseline.*: (better|worse|within noise) in mAP, by [-+0-9.]+ ±", retrieval["verdict"]
    )
    assert retrieval["columns"] == ["", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"]
    for _, rank1, rank5, rank10, *rest in retrieval["rows"]:
        assert 0 <= rank1 <= rank5 <= rank10 <= 100 and all(0 <= v <= 100 for v in rest)
    assert [row[0] for row in pictures["rows"]] == [
        "reconstruction", "swap", "structure picture left as it is",
    ]  # fmt: skip
    for row in pictures["rows"]:
        scores = dict(zip(pictures["columns"], row, strict=True))
        assert all(5 < scores[name] < 60 for name in scores if name.endswith("PSNR (dB)"))
        assert all(-1 <= scores[name] <= 1 for name in scores if name.endswith("SSIM"))
        assert 0 < scores["clothes: colour error"] < 100


def test_the_baseline_is_trained_as_long_as_the_whole_run(whole):
    records = read_metrics(whole / "baseline" / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, STEPS + 5))
    assert (whole / "baseline.pt").is_file() and not (whole / "baseline" / "state.pt").exists()
    # 16 real pictures in a joint step: 3 and their positives in either stream, and 4 further ones
    assert (
        "real pictures: E_a learns from 112 (4 steps of 4 as its teacher, 6 steps of 16), the baseline from 120 (10 steps of 12)"
        in (whole / "results.json").read_text()
    )


def test_scores_while_training_and_the_best_checkpoint(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train.main(words(folder, eval_iter=2, baseline=False)) == 0
    found = {r["step"]: r for r in read_metrics(folder / "metrics.jsonl") if r["phase"] == "eval"}
    assert list(found) == [2, 4, 6]
    assert found[2].keys() >= {"mAP", "Rank-1", "recon_psnr", "swap_clothes_colour"}
    retrieval, _ = read_tables(folder / "results.json")
    assert retrieval["rows"][-1][4] == pytest.approx(found[6]["mAP"], abs=0.051)
    best = max(found.values(), key=lambda r: r["mAP"])["step"]
    content = read_run(folder / "checkpoints" / "best.pt")
    assert content["step"] == best
    assert load_for_use(folder / "checkpoints" / "best.pt")[1]["step"] == best
    assert "step 6: mAP" in capsys.readouterr().err
    assert [row[0] for row in retrieval["rows"]] == ["chance", "teacher (baseline)", "DG-Net"]


def test_the_teachers_row_is_that_of_the_saved_teacher(whole):
    """Generated pictures pass through the teacher's BatchNorms in training; its score must not suffer from that."""
    config = load_config(whole / "config.yaml").replace(teacher=str(whole))
    (found,) = load_teachers(config)
    scores = score_retrieval(Extractor.of(found, config), dataset_of(config))["single"]
    (row,) = (r for r in read_tables(whole / "results.json")[0]["rows"] if "teacher" in r[0])
    assert row == retrieval_row("teacher (baseline)", scores)


def test_a_finished_run_is_scored_again_and_not_trained(whole, capsys):
    before, results = losses(whole), (whole / "results.json").read_text()
    assert train.main(["--resume", "--out", str(whole)]) == 0
    assert "DG-Net" in capsys.readouterr().out
    assert losses(whole) == before and (whole / "results.json").read_text() == results


def at_step(monkeypatch, wanted, act):
    """Call ``act`` at the beginning of a training step."""
    plain = loop.TrainingStep.__call__

    def step(self, batches, number):
        if number == wanted:
            act()
        return plain(self, batches, number)

    monkeypatch.setattr(loop.TrainingStep, "__call__", step)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that --max-steps stopped after step 3."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert train.main([*words(folder), "--max-steps", "3"]) == 0
    assert "stopped at --max-steps 3 of 6" in said.getvalue()
    return folder


def test_stopping_at_max_steps_and_resuming_gives_the_same(whole, stopped, tmp_path, capsys):
    assert losses(stopped) == losses(whole)[:3] and not (stopped / "results.json").exists()
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    assert train.main(["--resume", "--out", str(folder)]) == 0
    assert "resuming" in capsys.readouterr().err
    assert_same_outcome(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_what_max_steps_saves(stopped, tmp_path, capsys, monkeypatch, number):
    """So the run can go on, as after that."""
    folder, handler = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(number))
        assert train.main(words(folder)) == 128 + number
    out = capsys.readouterr().out
    assert (
        f"stopped after step 3, saved; continue with: python -m dgnet_fast.train --resume --out {folder}"
        in out
    )
    assert signal.getsignal(number) == handler
    assert losses(folder) == losses(stopped)
    ours, theirs = (read_run(run / "checkpoints" / "step_00000003.pt") for run in (folder, stopped))
    assert ours.keys() == theirs.keys()
    for part in ("model", "optimisers"):
        for one, other in zip(tree_leaves(ours[part]), tree_leaves(theirs[part]), strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_signal_while_the_teacher_trains(whole, tmp_path, capsys, monkeypatch):
    folder, plain = tmp_path / "run", teacher_loop.smoothed_cross_entropy
    calls = []

    def loss(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_loop, "smoothed_cross_entropy", loss)
        assert train.main(words(folder)) == 128 + signal.SIGTERM
    assert "stopped after step 2, saved" in capsys.readouterr().out
    assert (folder / "teacher" / "state.pt").is_file() and not (folder / "teacher.pt").exists()
    assert train.main(["--resume", "--out", str(folder)]) == 0
    assert [r["step"] for r in read_metrics(folder / "teacher" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert_same_outcome(folder, whole)


def test_the_second_signal_acts_at_once(request):
    # started in the background a process may find SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), loop.StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


KILLED = """
import os, signal, sys
from dgnet_fast import train
replace = os.replace
def killed(source, target):
    if str(target).endswith("step_00000004.pt"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_one_before(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words(folder)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(losses(folder)) == 4
    found = {p.name for p in (folder / "checkpoints").glob("step_*")}
    assert found == {"step_00000002.pt"}
    assert train.main(["--resume", "--out", str(folder)]) == 0
    assert "resuming" in capsys.readouterr().err
    assert_same_outcome(folder, whole)


def poisoned(monkeypatch, steps):
    """Training pictures are NaN in the given steps."""
    plain = TrainBatches.batch

    def batch(self, step):
        made = plain(self, step)
        return made._replace(x=made.x * math.nan) if step in steps else made

    monkeypatch.setattr(TrainBatches, "batch", batch)


def test_a_run_that_diverges_stops_with_one_line(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    poisoned(monkeypatch, range(3, 99))
    assert train.main(words(folder, max_bad_steps=2, teacher="", pretrained="")) == 1
    err = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "\n".join(err)
    assert err[-1].startswith("python -m dgnet_fast.train: 2 steps in a row had non-finite losses (dis")
    assert "the last at step 5" in err[-1] and str(folder / "checkpoints") in err[-1]
    assert any("step 4 skipped: dis" in line for line in err)
    records = read_metrics(folder / "metrics.jsonl")
    assert [r.get("skipped", 0) for r in records] == [0, 0, 0, 1, 1]
    assert math.isnan(records[-1]["dis_total"]) and math.isfinite(records[2]["dis_total"])


def test_single_bad_steps_do_not_stop_a_run(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    poisoned(monkeypatch, (1, 3))
    options = {"max_bad_steps": 2, "teacher": "", "pretrained": ""}
    assert train.main([*words(folder, **options), "--max-steps", "5"]) == 0
    assert [r.get("skipped", 0) for r in read_metrics(folder / "metrics.jsonl")] == [0, 1, 0, 1, 0]
    state = torch.load(folder / "checkpoints" / "step_00000005.pt", weights_only=True)
    assert all(v.isfinite().all() for v in state["model"].values())


def test_what_is_logged_is_the_mean_over_the_streams(tmp_path, capsys, monkeypatch):
    terms = []
    plain = loop.scalars_of

    def seen(result, config, step):
        terms.append(result.terms)
        return plain(result, config, step)

    monkeypatch.setattr(loop, "scalars_of", seen)
    assert train.main([*words(tmp_path / "run", teacher="", pretrained=""), "--max-steps", "2"]) == 0
    for found, record in zip(terms, read_metrics(tmp_path / "run" / "metrics.jsonl"), strict=True):
        for name in ("recon_x", "id", "dis", "adv"):
            assert record[name] == pytest.approx((found[name][0] + found[name][1]) / 2)
        for name in ("total", "dis_total"):  # what is minimised: both streams together
            assert record[name] == found[name]


def test_the_alarm_is_heard_and_knows_what_was_before_a_break(tmp_path, capsys, monkeypatch):
    heard = []

    class Alarm:
        def observe(self, step, scalars):
            heard.append((step, scalars["recon_x"]))
            return ["recon_x diverges"] if step == 3 else []

    monkeypatch.setattr(loop, "DivergenceAlarm", Alarm)
    options = words(tmp_path / "run", teacher="", pretrained="")
    assert train.main([*options, "--max-steps", "3"]) == 0
    assert "step 3: recon_x diverges" in capsys.readouterr().err.splitlines()
    before = heard[:]
    heard.clear()
    assert train.main(["--resume", "--out", str(tmp_path / "run"), "--max-steps", "4"]) == 0
    assert heard[:3] == before and [step for step, _ in heard] == [1, 2, 3, 4]


def test_the_same_seed_gives_the_same_run(tmp_path, capsys):
    found = []
    for k in range(2):
        torch.manual_seed(k)  # what was drawn before must not matter
        folder = tmp_path / str(k)
        assert train.main([*words(folder, teacher="", pretrained=""), "--max-steps", "2"]) == 0
        found.append(losses(folder))
    assert found[0] == found[1]
    folder = tmp_path / "other"
    assert train.main([*words(folder, teacher="", pretrained="", seed=1), "--max-steps", "1"]) == 0
    assert losses(folder)[0] != found[0][0]


# --- evaluate and teacher


def scores(capsys, *arguments):
    """What evaluate prints and writes."""
    file = Path(str(arguments[0])).parent / "scores.json"
    assert evaluate.main([*map(str, arguments), "--json", str(file), "--device", "cpu"]) == 0
    (table,) = read_tables(file)
    assert "Rank-1" in capsys.readouterr().out
    return table


def test_evaluate_gives_the_runs_own_scores(whole, capsys):
    table = scores(capsys, whole)
    (row,) = (r for r in read_tables(whole / "results.json")[0]["rows"] if r[0] == "DG-Net")
    single, multi = table["rows"]
    assert (single[0], multi[0]) == ("single query", "multi query")
    for column, value in zip(("Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"), row[1:], strict=True):
        assert single[table["columns"].index(column)] == pytest.approx(value, abs=0.0501)
    assert scores(capsys, whole / "checkpoints" / "step_00000006.pt")["rows"] == table["rows"]
    assert len(scores(capsys, whole, "--no-multi-query", "--second-half-weight", "only")["rows"]) == 1
    fewer = scores(capsys, whole, "--max-queries", "2", "--batch", "5")
    assert any("of 2 queries" in note for note in fewer["notes"])


def test_evaluate_on_public_files(whole, tmp_path, capsys):
    model, _ = load_for_use(whole)
    folder = tmp_path / "public"
    folder.mkdir()
    paths = export_public(model, folder, 100)
    (folder / "config.yaml").write_text(model.config.to_yaml())
    expected = scores(capsys, whole)["rows"]
    assert scores(capsys, folder)["rows"] == expected
    (folder / "config.yaml").rename(tmp_path / "options.yaml")
    assert (
        scores(capsys, paths["id"], "--config", tmp_path / "options.yaml", "--data", "synthetic")["rows"]
        == expected
    )
    assert evaluate.main([str(paths["id"])]) == 1
    assert "give --config FILE" in capsys.readouterr().err


def test_the_teacher_command(whole, tmp_path, capsys):
    folder = tmp_path / "teacher"
    assert teacher.main(words(folder)) == 0
    out = capsys.readouterr().out
    assert "teacher (baseline)" in out and f"teacher: {folder / 'teacher.pt'}" in out
    (table,) = read_tables(folder / "results.json")
    assert [row[0] for row in table["rows"]] == ["chance", "teacher (baseline)"]
    config = load_config(folder / "config.yaml")
    forms = [
        load_teachers(config.replace(teacher=str(place)))[0].state_dict()
        for place in (folder / "teacher.pt", folder / "net_last.pth", whole)
    ]
    for name, value in forms[0].items():  # ours, the public layout, and that of the run's own teacher
        assert torch.equal(value, forms[1][name]) and torch.equal(value, forms[2][name]), name
    assert teacher.main(words(folder)) == 1
    assert "already holds a finished teacher" in capsys.readouterr().err
    follower = tmp_path / "run"
    assert train.main([*words(follower, teacher=str(folder)), "--max-steps", "3"]) == 0
    assert losses(follower) == losses(whole)[:3]
    (folder / "teacher.pt").unlink()
    assert train.main([*words(tmp_path / "wrong", teacher=str(folder / "teacher.pt"))]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m dgnet_fast.train: teacher is ")
