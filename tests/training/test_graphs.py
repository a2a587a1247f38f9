"""Deferred checks: the same numbers without the host."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch

from dgnet_fast import train
from dgnet_fast.data import TrainBatches
from dgnet_fast.training import loop, run
from dgnet_fast.training.guard import Guard
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.step import TrainingStep
from tests.tiny import ALL_TERMS, tiny_batch, tiny_config, tiny_model, tiny_step
from tests.training.deferred import CPU, F64, LOW, OURS, deferred_step, poisoned
from tests.training.test_run import words
from tests.training.test_update import assert_same, snapshot

# --- checks on the device


@pytest.mark.parametrize("ours", [{}, OURS], ids=["paper", "ours"])
def test_a_deferred_step_gives_the_numbers_of_one_that_checks_at_once(ours):
    config = tiny_config(teacher="given", erasing_p=0.5, **ALL_TERMS, **ours)
    steps = tiny_step(tiny_model(config, 1, F64), dropout=True), deferred_step(config, F64)
    for number in range(2):
        batch = tiny_batch(config, number, F64)
        one, two = (step([batch], number) for step in steps)
        assert one.non_finite == two.non_finite == []
        for name, value in one.terms.items():
            # learning rates of the fused optimisers are float32
            torch.testing.assert_close(
                torch.tensor(two.terms[name]), torch.tensor(value), rtol=1e-6, atol=1e-9
            )
    other = steps[1].model.state_dict()
    for name, value in steps[0].model.state_dict().items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-8, msg=name)


@LOW
@pytest.mark.parametrize(
    "place, named, ours",
    [
        ("x", {"dis", "dis_total"}, {}),
        ("xp", {"recon_xp", "pid", "total"}, {}),
        ("more", {"id_more", "total"}, OURS),
    ],
)
def test_a_deferred_bad_step_leaves_everything_as_it_was(place, named, ours, amp):
    config = tiny_config(teacher="given", erasing_p=0.5, **ALL_TERMS, **ours)
    good = tiny_batch(config)
    step, never = deferred_step(config, amp=amp), deferred_step(config, amp=amp)
    step([good], 0), never([good], 0)
    before = snapshot(step)
    result = step([poisoned(good, place)], 1)
    assert named <= set(result.non_finite)
    assert_same(snapshot(step), before)
    assert all(t.isfinite().all() for t in step.model.teachers.buffers())
    step([good], 2), never([good], 2)
    assert_same(snapshot(step), snapshot(never))


def test_a_deferred_bad_first_step_leaves_no_trace():
    config = tiny_config()
    good = tiny_batch(config)
    step, never = deferred_step(config), deferred_step(config)
    before = snapshot(step)
    step([poisoned(good, "xp")], 0)
    assert_same(snapshot(step), before)
    step([good], 1), never([good], 1)
    assert_same(snapshot(step), snapshot(never))


@pytest.mark.parametrize("deferred", [True, False])
def test_skips_are_counted_until_they_are_read(deferred):
    config = tiny_config()
    step = deferred_step(config) if deferred else tiny_step(tiny_model(config))
    good = tiny_batch(config)
    bad = {"x": poisoned(good), "xp": poisoned(good, "xp")}

    def run(*kinds):
        for number, kind in enumerate(kinds):
            step([bad.get(kind, good)], number)
        return step.guard.skips()

    assert run("-", "-") == (0, 0, 0, [])
    found = run("x", "-", "xp", "xp")
    assert found[:3] == (3, 2, 2)
    assert {"dis_total", "recon_xp"} <= set(found.names) <= set(TrainingStep.TERMS)
    assert run("xp", "-")[:3] == (1, 3, 0)  # the row had begun before
    assert run("-") == (0, 0, 0, [])


def test_terms_are_read_before_the_next_step():
    config = tiny_config()
    step = deferred_step(config)
    first = step([tiny_batch(config)], 0)
    step([tiny_batch(config)], 1)
    with pytest.raises(AssertionError, match="before the next step"):
        _ = first.terms


def test_deferred_checks_need_fused_optimisers():
    model = tiny_model(tiny_config())
    with pytest.raises(ValueError, match="fused"):
        TrainingStep(model, Optimisers(model, model.config), Precision(None, CPU), deferred=True)


def _groups(step):
    return [group for _, one in step.optimisers.named() for group in one.param_groups]


def test_optimiser_states_move_between_devices_kinds():
    """A checkpoint of fused optimisers with rates in tensors loads into plain ones, and back."""
    config = tiny_config(step_size=2, gamma=0.5, gamma2=0.2)
    fused, plain = deferred_step(config, F64), tiny_step(tiny_model(config, dtype=F64), dropout=True)
    batch = tiny_batch(config, dtype=F64)
    for number in range(4):
        fused([batch], number)
    saved = copy.deepcopy(fused.optimisers.state_dict())
    assert all(
        isinstance(g["lr"], float) and not g["fused"] for s in saved.values() for g in s["param_groups"]
    )
    plain.model.load_state_dict(fused.model.state_dict())
    plain.optimisers.load_state_dict(saved)
    rates = [g["lr"] for _, o in fused.optimisers.named() for g in o.param_groups]
    fused.optimisers.load_state_dict(copy.deepcopy(plain.optimisers.state_dict()))  # else they share
    assert all(a is g["lr"] for a, g in zip(rates, _groups(fused), strict=True))
    for step in (fused, plain):
        step([batch], 4)
    for (name, one), two in zip(
        fused.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-8, msg=name)
    for one, two in zip(_groups(fused), _groups(plain), strict=True):
        assert one["lr"].item() == pytest.approx(two["lr"])


def test_a_deferred_run_reads_losses_seldom_and_still_stops(tmp_path, capsys, monkeypatch):
    """Bad from step 11 on, stops at 4 in a row: the 14th step is the fourth, and skips are read every 4 steps."""
    monkeypatch.setattr(loop, "TrainingStep", functools.partial(TrainingStep, deferred=True))
    monkeypatch.setattr(run, "Optimisers", functools.partial(Optimisers, fused=True))
    plain_batch, plain_skips, read = TrainBatches.batch, Guard.skips, []

    def batch(self, step):
        made = plain_batch(self, step)
        return poisoned(made, "xp") if step == 5 or step >= 10 else made

    def skips(self):
        read.append(self.steps)
        return plain_skips(self)

    monkeypatch.setattr(TrainBatches, "batch", batch)
    monkeypatch.setattr(Guard, "skips", skips)
    monkeypatch.setattr("dgnet_fast.report.log.LONGEST_SILENCE", math.inf)  # a slow machine would read more often
    changes = {"max_iter": 5000, "snapshot_save_iter": 9, "image_display_iter": 9000, "image_save_iter": 9000}
    changes |= {"max_bad_steps": 4, "log_iter": 100, "teacher": "", "pretrained": ""}
    assert train.main(words(tmp_path / "run", **changes)) == 1
    err = capsys.readouterr().err
    assert read == [1, 4, 8, 12, 16], err
    assert "step 8 skipped" not in err and "1 steps up to 8 skipped" in err
    assert "6 steps in a row had non-finite losses (" in err.splitlines()[-1]
    assert "the last at step 16" in err.splitlines()[-1] and "Traceback" not in err
    state = torch.load(tmp_path / "run" / "checkpoints" / "step_00000009.pt", weights_only=True)
    assert all(v.isfinite().all() for v in state["model"].values())
