"""Whole runs of two processes on a few synthetic people: one writer, and what happens when a process dies or is stopped."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time

import pytest
import torch

from dgnet_fast import train
from dgnet_fast.checkpoints.runs import checkpoints_in, read_run
from tests.distributed.launching import by_torchrun, finish, start, together
from tests.tiny import NETWORK, arguments

STEPS = 6
OPTIONS = NETWORK | {
    "synthetic_ids": 4,
    "synthetic_views": 4,
    "synthetic_test_ids": 3,
    "batch_size": 2,
    "max_iter": STEPS,
    "snapshot_save_iter": 2,
    "log_iter": 1,
    "image_display_iter": 3,
    "display_size": 2,
    "eval_iter": 3,
    "warm_iter": 1,
    "warm_teacher_iter": 1,
    "warm_scale": 0.2,
    "teacher": "auto",
    "teacher_steps": 3,
    "teacher_batch": 4,
    "real_batch": 0,
    "bn_together": "false",  # which bn_parts cannot have
    "generator_steps": 2,
    "baseline": "false",
    "num_workers": 1,
    "gray_jitter": 0,  # drawn for each process, as dropout is
    "amp": "off",
    "device": "cpu",
}


def words(folder, **changes):
    return [*arguments(OPTIONS | changes), "--out", str(folder)]


def metrics(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def weights(folder):
    return read_run(checkpoints_in(folder / "checkpoints")[-1])["model"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing disturbed, and what they said."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, together(["-m", "dgnet_fast.train", *words(folder)])


def test_one_process_writes_and_talks(whole):
    folder, (first, second) = whole
    assert second[1:] == ("", "")
    assert "DG-Net" in first[1] and "2 processes with a batch size of 2 each: 4 pictures a stream" in first[2]
    steps = [json.loads(line)["step"] for line in metrics(folder) if json.loads(line)["phase"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    assert len((folder / "teacher" / "metrics.jsonl").read_text().splitlines()) == 3
    assert [path.name for path in checkpoints_in(folder / "checkpoints")][-1] == f"step_{STEPS:08d}.pt"
    assert (folder / "report.html").is_file() and (folder / "samples" / "step_00000003.png").is_file()


def test_one_process_goes_on_where_two_were_with_the_same_pictures(whole, tmp_path):
    """The losses without dropout are those of the two: batch size times processes is the same, and so is what BatchNorm
    takes its statistics of.
    """
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    for path in (folder / "checkpoints").iterdir():
        if path.name != "step_00000004.pt":
            path.unlink()
    words = ["--batch-size", "4", "--bn-parts", "2", "--eval-iter", "0", "--max-steps", "5"]
    assert train.main(["--resume", "--out", str(folder), *words]) == 0
    *_, mine = map(json.loads, metrics(folder))
    (theirs,) = (one for one in map(json.loads, metrics(whole[0])) if one["step"] == mine["step"] == 5)
    for name in ("dis", "dis_penalty", "adv", "recon_x", "recon_xp", "recon_f", "recon_s", "recon_x_cyc"):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


@pytest.mark.thorough
def test_torchrun_goes_on_after_a_kill_with_the_same_losses(whole, tmp_path):
    folder = tmp_path / "run"
    accident = ["-m", "tests.distributed.failing", "KILL", "4", *words(folder)]
    ended = by_torchrun(accident, 2, "--max-restarts", "1", "--monitor-interval", "0.2")
    assert ended.returncode == 0, ended.stderr[-3000:]
    # the first process may have saved step 4 before it noticed
    assert re.search(r"resuming .* at step [24]", ended.stderr), ended.stderr[-3000:]
    assert metrics(folder) == metrics(whole[0])
    theirs = weights(whole[0])
    assert all(torch.equal(value, theirs[name]) for name, value in weights(folder).items())


@pytest.mark.thorough
def test_the_others_end_with_one_line_when_a_process_is_killed(tmp_path):
    begin = time.monotonic()
    first, last = finish(
        start(["-m", "tests.distributed.failing", "KILL", "2", *words(tmp_path / "run", generator_steps=0)])
    )
    assert time.monotonic() - begin < 100 and last[0] == -9 and first[0] == 1
    lines = [line for line in first[2].splitlines() if line.startswith("python -m dgnet_fast.train:")]
    assert len(lines) == 1 and "Traceback" not in first[2]
    assert "another process of this run has ended or did not answer" in lines[0]


@pytest.mark.thorough
def test_a_signal_to_one_stops_all_and_one_process_goes_on_and_then_two(whole, tmp_path):
    folder = tmp_path / "run"
    ended = finish(start(["-m", "tests.distributed.failing", "TERM", "3", *words(folder)]))
    assert [one[0] for one in ended] == [128 + signal.SIGTERM] * 2, ended
    assert [one[1].startswith("stopped after step 4, saved") for one in ended] == [True, False]
    saved = [int(path.stem.removeprefix("step_")) for path in checkpoints_in(folder / "checkpoints")]
    assert saved == [2, 3, 4]  # the second of them because it had the best scores
    assert metrics(folder) == [line for line in metrics(whole[0]) if json.loads(line)["step"] <= 4]
    assert train.main(["--resume", "--out", str(folder), "--batch-size", "4", "--max-steps", "5"]) == 0
    assert len(metrics(folder)) == len(metrics(whole[0])) - 2  # step 6, and its scores
    together(["-m", "dgnet_fast.train", "--resume", "--out", folder, "--batch-size", "2"])
    assert len(metrics(folder)) == len(metrics(whole[0])) and (folder / "report.html").is_file()
