"""The strong re-identification baseline: its losses, its schedule, and that the paper's teacher stays what it was."""

from __future__ import annotations

import signal

import pytest
import torch
import torch.nn.functional as F

from dgnet_fast import teacher
from dgnet_fast.config import Config, from_dict
from dgnet_fast.training.loop import StopSignal
from dgnet_fast.training.losses import batch_hard_triplet, cross_entropy, smoothed_cross_entropy
from dgnet_fast.training.run import Run
from dgnet_fast.training.teacher_loop import teacher_rate
from tests.tiny import arguments, tiny_config
from tests.tiny_run import DATA

STRONG = {
    "reid.views": 2, "reid.triplet_w": 1.0, "reid.smoothing": 0.1, "reid.policy": "cosine", "reid.warm_up": 2,
    "reid.ema_decay": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("margin", [0.3, 0.0])
def test_the_triplet_loss_takes_the_hardest_pictures(margin):
    features = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])  # the last has no positive
    expected = []
    for i in range(7):
        d = (features[i] - features).norm(dim=1)
        positive = max(d[j] for j in range(8) if labels[j] == labels[i] and j != i)
        negative = min(d[j] for j in range(8) if labels[j] != labels[i])
        gap = positive - negative
        expected.append(F.softplus(gap) if margin == 0 else (gap + margin).clamp(min=0))
    found = batch_hard_triplet(features, labels, margin)
    assert found.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: batch_hard_triplet(x, labels, margin), (features,), atol=1e-4)


def test_no_smoothing_is_the_papers_loss():
    logits, labels = [torch.randn(4, 6)], torch.tensor([[0, 1], [2, 3]])
    assert torch.equal(smoothed_cross_entropy(logits, labels, 0.0), cross_entropy(logits, labels))
    target = torch.full((4, 6), 0.1 / 6).scatter_add(1, labels.flatten()[:, None], torch.full((4, 1), 0.9))
    wanted = -(target * logits[0].log_softmax(1)).sum(1).view(2, 2).mean(1)
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, 0.1), wanted)


def test_the_rate_of_the_teacher():
    paper = Config()
    rates = [teacher_rate(paper, step) for step in (0, 15999, 16000, 23999)]
    assert rates == [1.0, 1.0, 0.1, 0.1]
    strong = from_dict({"reid": {"policy": "cosine", "warm_up": 9}, "teacher_steps": 100})
    assert teacher_rate(strong, 0) == pytest.approx(0.1) and teacher_rate(strong, 50) == pytest.approx(0.5)
    assert teacher_rate(strong, 99) < 0.001


@pytest.mark.parametrize(
    ("batch_size", "option", "pictures"),
    [(3, 0, 10), (3, 6, 6), (20, 0, 2 * 20)],  # the last: all that 20 pictures give
)
def test_the_baseline_sees_as_many_real_pictures_as_e_a(tmp_path, monkeypatch, batch_size, option, pictures):
    sizes = {"batch_size": batch_size, "real_batch": 4, "teacher_batch": 4, "baseline_batch": option}
    config = tiny_config(**DATA | sizes | {"max_iter": 5}, ID_class=0, teacher="auto", teacher_steps=5)
    seen = {}
    monkeypatch.setattr(Run, "train_baseline", lambda self, name, *_, **options: seen.update(options))
    with StopSignal() as stop:
        Run.open(config, tmp_path / "run").baseline(stop)
    assert seen == {"steps": 5 + config.max_iter, "batch": pictures}


def words(folder, **changes):
    config = tiny_config(**DATA, ID_class=0, teacher_batch=4, teacher_steps=6, log_iter=1).to_dict()
    keys = (
        "data",
        "synthetic_ids",
        "synthetic_views",
        "synthetic_test_ids",
        "teacher_batch",
        "teacher_steps",
        "log_iter",
    )
    from tests.tiny import NETWORK

    options = NETWORK | {name: config[name] for name in keys} | {"amp": "off", "device": "cpu"} | changes
    return [*arguments(options), "--out", str(folder), "--quiet"]


def test_a_strong_teacher_trains_and_resumes(tmp_path, monkeypatch):
    assert teacher.main(words(tmp_path / "whole", **STRONG)) == 0
    lines = (tmp_path / "whole" / "teacher" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6 and '"triplet"' in lines[0]
    from dgnet_fast.training import teacher_loop

    class Stop(StopSignal):
        """Asks the third step to be the last."""

        count = 0

        def due(self):
            self.count += 1
            return self.count == 3

    plain = teacher_loop.train_teacher
    monkeypatch.setattr(
        "dgnet_fast.training.run.train_teacher", lambda *a, **k: plain(*a, **k | {"stop": Stop()})
    )
    assert teacher.main(words(tmp_path / "halted", **STRONG)) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert not (tmp_path / "halted" / "teacher.pt").exists()
    assert teacher.main(words(tmp_path / "halted", **STRONG)) == 0
    assert lines == (tmp_path / "halted" / "teacher" / "metrics.jsonl").read_text().splitlines()
    both = [torch.load(tmp_path / name / "net_last.pth") for name in ("whole", "halted")]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())


def test_a_triplet_needs_views():
    with pytest.raises(ValueError, match="the triplet loss needs at least 2 views"):
        from_dict({"reid": {"triplet_w": 1.0}})
