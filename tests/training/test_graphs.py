"""Deferred checks and recorded steps: the same numbers without the host, on a CPU with a stand-in for CUDA graphs."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch

from dgnet_fast import train
from dgnet_fast.config import ConfigError
from dgnet_fast.data import Batch, TrainBatches
from dgnet_fast.training import loop, run
from dgnet_fast.training.graphs import WARM_UP, StepGraphs, graphs_wanted
from dgnet_fast.training.guard import Guard
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.step import TrainingStep
from tests.tiny import ALL_TERMS, tiny_batch, tiny_config, tiny_model, tiny_step
from tests.training.test_run import words
from tests.training.test_update import assert_same, snapshot

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
F64 = torch.float64


def deferred_step(config, dtype=torch.float32, recorder=None, amp=None, **options):
    """A step that leaves its checks to the end, as on CUDA, with fused optimisers."""
    model = tiny_model(config, 1 if config.teacher else 0, dtype)
    optimisers = Optimisers(model, config, fused=True)
    return TrainingStep(model, optimisers, Precision(amp, CPU), deferred=True, recorder=recorder, **options)


LOW = pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["fp32", "bf16"])


def poisoned(batch, place="x"):
    pictures = getattr(batch, place).clone()
    pictures[1, 2, 0, 3, 4] = math.nan
    return batch._replace(**{place: pictures})


# --- checks on the device


def test_a_deferred_step_gives_the_numbers_of_one_that_checks_at_once():
    config = tiny_config(teacher="given", erasing_p=0.5, **ALL_TERMS)
    steps = tiny_step(tiny_model(config, 1, F64), dropout=True), deferred_step(config, F64)
    for number in range(3):
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
@pytest.mark.parametrize("place, named", [("x", {"dis", "dis_total"}), ("xp", {"recon_xp", "pid", "total"})])
def test_a_deferred_bad_step_leaves_everything_as_it_was(place, named, amp):
    config = tiny_config(teacher="given", erasing_p=0.5, **ALL_TERMS)
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
    assert all(a is g["lr"] for a, g in zip(rates, fused.optimisers._groups(), strict=True))
    for step in (fused, plain):
        step([batch], 4)
    for (name, one), two in zip(
        fused.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-8, msg=name)
    for one, two in zip(fused.optimisers._groups(), plain.optimisers._groups(), strict=True):
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


# --- recording


class Stand:
    """Keeps work as it is given, and calls it again as a replay."""

    def __init__(self):
        self.log = []

    def warm_up(self, work):
        self.log.append("warm up")
        return work()

    def record(self, work):
        self.log.append("record")
        return lambda: self.log.append("replay") or work(), self.names


def test_variants_are_warmed_up_recorded_and_replayed():
    seen, stand = [], Stand()
    stand.names = ["total"]

    def update(batches, plan):
        (batch,) = batches
        seen.append((batch.x.data_ptr(), batch.x.sum().item(), batch.erasing_boxes is None, plan))
        return ["total"]

    graphs = StepGraphs(update, stand)
    for number in range(WARM_UP + 3):
        x = torch.full((2, 1, 3, 4, 4), float(number))
        assert graphs(Batch(x, x, torch.zeros(2, 1, dtype=torch.int64), None), number, "plain") == ["total"]
        if stand.log[-1] != "replay":
            assert seen[-1][3] == number
        assert seen[-1][:3] == (seen[0][0], x.sum().item(), True)  # one buffer, this batch's values
        assert seen[-1][0] != x.data_ptr()
    assert stand.log == ["warm up"] * WARM_UP + ["record"] + ["replay"] * 3
    for variant in ("ramped", "trained"):
        stand.log.clear()
        for _ in range(WARM_UP + 1):
            graphs(Batch(x, x, torch.zeros(2, 1, dtype=torch.int64), None), variant, variant)
        assert stand.log == ["warm up"] * WARM_UP + ["record", "replay"]
        assert seen[-1][3] == variant
    stand.log.clear()
    graphs(Batch(x, x, torch.zeros(2, 1, dtype=torch.int64), None), "plain", "plain")
    assert stand.log == ["replay"]  # the first variant is still there
    small = torch.zeros(2, 1, 3, 2, 2)
    graphs(Batch(small, small, torch.zeros(2, 1, dtype=torch.int64), None), "plain", "plain")
    assert stand.log == ["replay", "warm up"]  # other shapes are another variant


@LOW
def test_recorded_steps_give_the_numbers_of_steps_that_are_not(amp):
    """Along a ramp and a decay, in both branches, with a bad step: all that changes arrives through tensors."""
    config = tiny_config(
        teacher="given",
        erasing_p=0.5,
        warm_iter=0,
        warm_teacher_iter=0,
        warm_scale=0.1,
        step_size=9,
        gamma=0.5,
    )
    stand = Stand()
    stand.names = None
    recorded, plain = deferred_step(config, recorder=stand, amp=amp), deferred_step(config, amp=amp)
    for number in range(14):
        batch = tiny_batch(config, number)
        batch = poisoned(batch, "xp") if number == 12 else batch
        one, two = plain([batch], number), recorded([batch], number)
        if stand.log[-1] == "warm up":
            assert one.terms == two.terms
            stand.names = list(one.terms)
        elif number != 12:
            assert recorded.guard.values.equal(plain.guard.values)
    assert stand.log.count("replay") >= 5 and stand.log.count("record") == 2
    assert_same(snapshot(recorded), snapshot(plain))


@pytest.mark.parametrize(
    "options, amp, reason",
    [
        ({}, torch.float16, "fp16"),
        ({"accumulate": 2}, None, "accumulate is 2"),
        ({"single": "edge"}, None, "edge"),
    ],
)
def test_when_steps_are_recorded(options, amp, reason):
    """Decided by options alone, so that it can be asked here of a device that is not there."""
    precision = Precision(None, CPU)
    precision.device, precision.scaling = CUDA, amp == torch.float16
    assert graphs_wanted(tiny_config(), Precision(None, CPU)) is False
    with pytest.raises(ConfigError, match="the device is cpu"):
        graphs_wanted(tiny_config(cuda_graphs="on"), Precision(None, CPU))
    assert graphs_wanted(tiny_config(**options), precision) is False
    with pytest.raises(ConfigError, match=reason):
        graphs_wanted(tiny_config(cuda_graphs="on", **options), precision)
    precision.scaling = False
    assert graphs_wanted(tiny_config(), precision) and not graphs_wanted(
        tiny_config(cuda_graphs="off"), precision
    )


# --- on a GPU


def cuda_step(config, teachers=1, **options):
    model = tiny_model(config, teachers).to(CUDA)
    return TrainingStep(model, Optimisers(model, config), Precision(None, CUDA), **options)


def cuda_batch(config, seed):
    return Batch(*(None if t is None else t.to(CUDA) for t in tiny_batch(config, seed)))


@pytest.mark.gpu
def test_replayed_steps_equal_eager_ones_on_a_gpu():
    """Both branches and the ramps, dropout included: the same seeds give the same masks. Sums of the backward pass
    come in any order, so not bit by bit."""
    options = {"teacher": "given", "erasing_p": 0.5, "warm_iter": 5, "warm_teacher_iter": 5, "device": "cuda"}
    graphs = cuda_step(tiny_config(cuda_graphs="on", **options))
    eager = cuda_step(tiny_config(cuda_graphs="off", **options))
    assert graphs.graphs is not None and eager.graphs is None and graphs.guard.deferred
    config = eager.model.config
    for number in range(24):
        batch = cuda_batch(config, number)
        one, two = eager([batch], number).terms, graphs([batch], number).terms
        for name, value in one.items():
            torch.testing.assert_close(
                torch.tensor(two[name]), torch.tensor(value), rtol=2e-2, atol=1e-3, msg=f"{number} {name}"
            )
    assert len(graphs.graphs._recorded) == 3
    bad = cuda_batch(config, 1)
    before = snapshot(graphs)
    assert graphs([bad._replace(xp=bad.xp * math.nan)], 24).non_finite
    assert_same(snapshot(graphs), before)
    assert graphs.guard.skips().skipped == 1


@pytest.mark.gpu
@pytest.mark.parametrize("recorded", ["on", "off"])
def test_a_step_never_waits_for_a_gpu(recorded):
    config = tiny_config(
        cuda_graphs=recorded, teacher="given", erasing_p=0.5, use_encoder_again=1.0, **ALL_TERMS
    )
    step, batch = cuda_step(config.replace(device="cuda")), cuda_batch(config, 0)
    for number in range(WARM_UP + 1):
        step([batch], number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(3):
            result = step([batch], number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.non_finite == []
