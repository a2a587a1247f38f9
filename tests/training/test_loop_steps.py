"""The steps of the teacher and of E_s and G alone, recorded and not; on a CPU with a stand-in for CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_flatten_with_path

from dgnet_fast import train
from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.report.log import read_metrics
from dgnet_fast.training.graphs import WARM_UP, LoopSteps, NotRecorded
from dgnet_fast.training.optim import Precision
from dgnet_fast.training.teacher_loop import TeacherBatch
from tests.tiny import tiny_config
from tests.training.deferred import CPU
from tests.training.test_recording import Stand
from tests.training.test_run import words


class Worker:
    """A step that draws a number, adds it to a sum beside the batch's, and leaves a gradient."""

    def __init__(self):
        self.weight = torch.zeros(3, requires_grad=True)
        self.sum, self.calls = torch.zeros(3), 0

    def __call__(self, batch):
        self.calls += 1
        self.sum += batch.pictures + torch.rand(3)
        self.weight.grad = torch.ones(3)
        return ["id"]


def steps_of(recorder, count=WARM_UP + 4):
    worker = Worker()
    steps = LoopSteps(worker, tiny_config(), Precision(None, CPU), [worker.weight], recorder)
    for number in range(count):
        batch = TeacherBatch(torch.full((3,), float(number)), torch.zeros(1), None, None)
        assert steps(batch, lambda seed=number: torch.manual_seed(seed)) == ["id"]
    return worker, steps


def test_a_recorded_loop_gives_what_one_gives_that_is_not():
    stand = Stand()
    stand.names = ["id"]
    (one, _), (two, steps) = steps_of(None), steps_of(stand)
    assert torch.equal(one.sum, two.sum)
    assert steps.graphs is not None and stand.log == ["warm up"] * WARM_UP + ["record"] + ["replay"] * 4


def test_a_loop_that_cannot_be_recorded_goes_on(caplog):
    class Refuses(Stand):
        def record(self, work):
            work()  # what a failed recording leaves in Python: here a gradient, and draws from the generator
            worker.sum -= worker.sum - before
            raise NotRecorded("the step could not be recorded")

    plain, _ = steps_of(None)
    worker, before = Worker(), torch.zeros(3)
    stand = Refuses()
    steps = LoopSteps(worker, tiny_config(), Precision(None, CPU), [worker.weight], stand)
    for number in range(WARM_UP + 4):
        before = worker.sum.clone()
        batch = TeacherBatch(torch.full((3,), float(number)), torch.zeros(1), None, None)
        steps(batch, lambda seed=number: torch.manual_seed(seed))
    assert torch.equal(worker.sum, plain.sum)
    assert steps.graphs is None and stand.log[-1] == "forget"
    assert "steps run without from here on" in caplog.text
    stand.required = True
    steps = LoopSteps(worker, tiny_config(), Precision(None, CPU), [worker.weight], stand)
    with pytest.raises(NotRecorded):
        for _ in range(WARM_UP + 1):
            before = worker.sum.clone()
            steps(batch, lambda: None)


def assert_loops_alike(one, two, start):
    """The teacher's and E_s and G's losses of two runs, and how far their weights moved from where ``start`` stood still.
    Rates must be tiny: at the usual ones a difference of 1e-6 in the first step is one of 2 % in the fourth.
    """
    for loop in ("teacher", "generator"):
        rows = [read_metrics(folder / loop / "metrics.jsonl") for folder in (one, two)]
        assert [r["step"] for r in rows[0]] == list(range(1, 9))
        for a, b in zip(*rows, strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() - {"time", "seconds", "accuracy"}:
                if isinstance(a[name], float):
                    assert a[name] == pytest.approx(b[name], rel=3e-2, abs=3e-3), (loop, a["step"], name)
    for file, key in (("teacher.pt", "teachers"), ("generator.pt", "decoder")):
        weights = [torch.cat(flattened(load_file(folder / file)[key])) for folder in (one, two, start)]
        moved = (weights[1] - weights[2]).norm()
        assert moved > 0 and (weights[0] - weights[1]).norm() <= 0.5 * moved, file


def flattened(content):
    """What is learned; running statistics move at any rate."""
    leaves, _ = tree_flatten_with_path(content)
    return [
        t.flatten()
        for path, t in leaves
        if torch.is_tensor(t) and t.is_floating_point() and "running" not in str(path[-1])
    ]


def looped(folder, **options):
    """A run of eight steps of the teacher with every option of its loss and of E_s and G alone: a few are recorded."""
    options = {
        "generator_steps": 8, "generator_code_w": 0.5, "gray_jitter": 0.3, "teacher_steps": 8, "teacher": "auto",
        "max_iter": 1, "baseline": False, "amp": "off", "log_iter": 1, "teacher_lr": 1e-5, "generator_lr": 1e-5,
        "reid.views": 2, "reid.triplet_w": 0.5, "reid.smoothing": 0.1, "reid.ema_decay": 0.5,
    } | options  # fmt: skip
    assert train.main(words(folder, **options)) == 0
    return folder


@pytest.mark.gpu
def test_recorded_loops_equal_eager_ones_on_a_gpu(tmp_path):
    one, two = (looped(tmp_path / how, device="cuda", cuda_graphs=how) for how in ("on", "off"))
    start = looped(tmp_path / "still", device="cuda", cuda_graphs="off", teacher_lr=1e-12, generator_lr=0)
    assert_loops_alike(one, two, start)


@pytest.mark.thorough
def test_the_comparison_of_loops_bears_rounding(tmp_path, monkeypatch):
    """What the test on a GPU asks, asked here of two runs whose convolutions differ as TF32's do."""
    two = looped(tmp_path / "two")
    start = looped(tmp_path / "still", teacher_lr=1e-12, generator_lr=0)
    plain = torch.nn.Conv2d._conv_forward

    def rounded(self, x, weight, bias):
        y = plain(self, x, weight, bias)
        with torch.random.fork_rng():
            return y * (1 + 3e-4 * torch.randn_like(y))

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", rounded)
    assert_loops_alike(looped(tmp_path / "one"), two, start)
    with pytest.raises(AssertionError):
        assert_loops_alike(looped(tmp_path / "other", seed=1), two, start)
