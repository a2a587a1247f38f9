"""The steps of the teacher and of E_s and G alone, recorded and not; on a CPU with a stand-in for CUDA graphs."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.gpu
def test_recorded_loops_equal_eager_ones_on_a_gpu(tmp_path):
    """The teacher with every option of its loss, and E_s and G alone: a few steps after the recording."""
    options = {
        "generator_steps": 8, "generator_code_w": 0.5, "gray_jitter": 0.3, "teacher_steps": 8, "teacher": "auto",
        "max_iter": 1, "device": "cuda", "amp": "off", "log_iter": 1,
        "reid.views": 2, "reid.triplet_w": 0.5, "reid.smoothing": 0.1, "reid.ema_decay": 0.5,
    }  # fmt: skip
    folders = {}
    for graphs in ("on", "off"):
        folders[graphs] = tmp_path / graphs
        assert train.main(words(folders[graphs], cuda_graphs=graphs, **options)) == 0
    for loop in ("teacher", "generator"):
        one, two = (read_metrics(folder / loop / "metrics.jsonl") for folder in folders.values())
        assert [r["step"] for r in one] == list(range(1, 9))
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() - {"time", "seconds"}:
                if isinstance(a[name], float):
                    assert a[name] == pytest.approx(b[name], rel=2e-2, abs=2e-3), (loop, a["step"], name)
    one, two = (load_file(folder / "generator.pt") for folder in folders.values())
    for name, weight in one["decoder"].items():
        torch.testing.assert_close(weight, two["decoder"][name], rtol=5e-2, atol=5e-3, msg=name)
