"""Recorded steps: the same numbers, on a CPU with a stand-in for CUDA graphs."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch

from dgnet_fast.config import ConfigError
from dgnet_fast.data import Batch
from dgnet_fast.training.graphs import WARM_UP, NotRecorded, StepGraphs, graphs_wanted
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.step import TrainingStep
from tests.tiny import ALL_TERMS, tiny_batch, tiny_config, tiny_model
from tests.training.deferred import CPU, CUDA, LOW, OURS, deferred_step, poisoned
from tests.training.test_update import assert_same, snapshot


class Stand:
    """Keeps work as it is given, and calls it again as a replay."""

    required = False

    def __init__(self):
        self.log = []

    def forget(self):
        self.log.append("forget")

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
@pytest.mark.parametrize("ours", [{}, OURS], ids=["paper", "ours"])
def test_recorded_steps_give_the_numbers_of_steps_that_are_not(ours, amp):
    """Along a ramp and a decay, in both branches, with a bad step: all that changes arrives through tensors."""
    config = tiny_config(
        teacher="given",
        erasing_p=0.5,
        warm_iter=0,
        warm_teacher_iter=0,
        warm_scale=0.1,
        step_size=9,
        gamma=0.5,
        **ours,
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


class Noted:
    """Lanes that only note who is in them."""

    def __init__(self):
        self.log, self.open = [], []

    @contextlib.contextmanager
    def lane(self, name):
        assert not self.open
        self.open.append(name)
        yield
        self.open.pop()

    def join(self):
        self.log.append("join")


@pytest.mark.parametrize(
    "options, beside",
    [
        ({"erasing_p": 0.5}, {"identity_part", "teacher_part"}),
        ({"erasing_p": 0.5, **OURS}, {"identity_part", "more_real_part", "teacher_part"}),
        (
            {"erasing_p": 0.0, **OURS},
            {"more_real_part", "teacher_part"},
        ),  # the first teaches E_a through the shared pass
        (
            {"erasing_p": 0.5, "train_bn": False},
            set(),
        ),  # reconstructions read the statistics that E_a's lessons move
    ],
)
def test_parts_side_by_side_give_the_numbers_of_parts_in_a_row(options, beside, monkeypatch):
    config = tiny_config(teacher="given", use_encoder_again=1.0, **ALL_TERMS, **options)
    stand, lanes = Stand(), Noted()
    stand.names = None
    step, plain = deferred_step(config, recorder=stand), deferred_step(config)
    step.lanes = lanes
    served = step.served

    def watched(function):
        lanes.log.append((function.__name__, *lanes.open))
        return served(function)

    monkeypatch.setattr(step, "served", watched)
    for number in range(4):
        lanes.log.clear()
        batch = tiny_batch(config, number)
        one, two = plain([batch], number).terms, step([batch], number)
        stand.names = list(one)
        for name, value in one.items():
            torch.testing.assert_close(torch.tensor(two.terms[name]), torch.tensor(value), msg=name)
        assert ("join" in lanes.log) == (number > 0)  # cuDNN times its algorithms in the first step, alone
    found = dict(entry for entry in lanes.log if len(entry) == 2)
    assert {name for name, lane in found.items() if lane == "encoder"} == beside
    dis = {"fake_part", "real_part", "adversarial_part"}
    assert {name for name, lane in found.items() if lane == "discriminator"} == dis
    done = lanes.log.index("join")
    assert all(entry in lanes.log[:done] for entry in lanes.log if len(entry) == 2)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(step.model.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


class Failing(Stand):
    """Fails on the way, as a recording does: it ran nothing on a device, but gradients and notes are left in Python."""

    def record(self, work):
        self.log.append("record")
        kept = [(t, t.clone()) for t in self.step.model.state_dict().values()]
        plain, self.step.guard.failed = self.step.guard.failed, None
        with pytest.raises(TypeError):
            work()
        self.step.guard.failed = plain
        assert self.step.guard._before and any(p.grad is not None for p in self.step.model.parameters())
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        for (_, one), state in zip(self.step.optimisers.named(), self.states(), strict=True):
            one.load_state_dict({"state": state, "param_groups": one.state_dict()["param_groups"]})
        raise NotRecorded("the step could not be recorded")

    def states(self):
        return [self.before[name]["state"] for name in ("gen", "dis", "id")]


def test_a_step_that_cannot_be_recorded_runs_without(caplog):
    """With ``auto``: said once, and the numbers are those of steps that are never recorded."""
    config = tiny_config(teacher="given", erasing_p=0.5, use_encoder_again=1.0, **ALL_TERMS)
    stand = Failing()
    step, plain = deferred_step(config, recorder=stand), deferred_step(config)
    stand.step = step
    for number in range(WARM_UP + 2):
        batch = tiny_batch(config, number)
        stand.before = copy.deepcopy(step.optimisers.state_dict())
        assert step([batch], number).terms == plain([batch], number).terms
    assert stand.log == ["warm up"] * WARM_UP + ["record", "forget"] and step.graphs is None
    assert_same(snapshot(step), snapshot(plain))
    assert [r.getMessage() for r in caplog.records if r.name.startswith("dgnet_fast")] == [
        "the step could not be recorded; steps run without from here on"
    ]


def test_a_step_that_must_be_recorded_ends_the_run():
    config = tiny_config(use_encoder_again=1.0)
    stand = Failing()
    stand.required = True
    step = stand.step = deferred_step(config, recorder=stand)
    with pytest.raises(NotRecorded):
        for number in range(WARM_UP + 1):
            stand.before = copy.deepcopy(step.optimisers.state_dict())
            step([tiny_batch(config, number)], number)
    assert stand.log == ["warm up"] * WARM_UP + ["record"]


# --- one step at a time


def state_of(step):
    """All tensors that a step reads and writes: weights, buffers, states of the optimisers."""
    states = [
        one.state[p] for _, one in step.optimisers.named() for g in one.param_groups for p in g["params"]
    ]
    return [*step.model.state_dict().values(), *(t for s in states for t in s.values() if torch.is_tensor(t))]


def assert_one_step_alike(eager, other, batch, number, other_batch=None):
    """From the same state, taken over in place, both make the same step: rounding differs where sums come in another
    order, and over several steps Adam makes any rounding large, since it moves a weight by its rate whatever the size
    of its gradient. So the gradients' averages are compared, network by network, and not the weights.
    """
    for to, value in zip(state_of(other), state_of(eager), strict=True):
        to.copy_(value)
    one, two = eager([batch], number).terms, other([other_batch or batch], number).terms
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            torch.tensor(two[name]), torch.tensor(value), rtol=2e-2, atol=1e-3, msg=f"{number} {name}"
        )
    for (name, optimiser), (_, theirs) in zip(
        eager.optimisers.named(), other.optimisers.named(), strict=True
    ):
        entry = "momentum_buffer" if name == "id" else "exp_avg"
        ours, others = (
            torch.cat([o.state[p][entry].flatten() for g in o.param_groups for p in g["params"]])
            for o in (optimiser, theirs)
        )
        assert (ours - others).norm() <= 2e-2 * ours.norm(), (number, name)


def test_the_comparison_of_one_step_bears_rounding_but_no_other_mask():
    """What the test on a GPU asks, asked of two steps here whose pictures differ by rounding."""
    config = tiny_config(teacher="given", erasing_p=0.5, **ALL_TERMS)
    eager, other = deferred_step(config), deferred_step(config)
    apart = 0  # a maximum or a sign may fall on the other side, whatever the size of the difference
    for number in range(4):
        batch = tiny_batch(config, number)
        try:
            assert_one_step_alike(eager, other, batch, number, batch._replace(x=batch.x * (1 + 1e-6)))
        except AssertionError:
            apart += 1
    assert apart <= 1
    with pytest.raises(AssertionError):
        assert_one_step_alike(eager, other, batch, 2, batch._replace(x=batch.x * 1.1))
    other.dropout = False
    with pytest.raises(AssertionError):
        assert_one_step_alike(eager, other, batch, 3)


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
@pytest.mark.parametrize("ours", [{}, OURS], ids=["paper", "ours"])
def test_replayed_steps_equal_eager_ones_on_a_gpu(ours):
    """Both branches and the ramps, dropout included: the same seeds give the same masks. Sums of the backward pass
    come in any order, so not bit by bit, and one step at a time.
    """
    options = {
        "teacher": "given",
        "erasing_p": 0.5,
        "warm_iter": 5,
        "warm_teacher_iter": 5,
        "device": "cuda",
        **ours,
    }
    graphs = cuda_step(tiny_config(cuda_graphs="on", **options))
    eager = cuda_step(tiny_config(cuda_graphs="off", **options))
    assert graphs.graphs is not None and eager.graphs is None and graphs.guard.deferred
    config = eager.model.config
    for number in range(24):
        assert_one_step_alike(eager, graphs, cuda_batch(config, number), number)
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


@pytest.mark.gpu
def test_a_recording_that_fails_on_a_gpu_is_given_up(monkeypatch):
    """The host reads a number while the step is recorded, which CUDA refuses; later steps are as if never recorded."""
    config = tiny_config(device="cuda", use_encoder_again=1.0)
    step, plain = cuda_step(config, 0), cuda_step(config.replace(cuda_graphs="off"), 0)
    finish = step.guard.finish

    def reading(*, failed):
        if torch.cuda.is_current_stream_capturing():
            step.guard.found.item()
        finish(failed=failed)

    monkeypatch.setattr(step.guard, "finish", reading)
    for number in range(WARM_UP + 2):
        assert_one_step_alike(plain, step, cuda_batch(config, number), number)
    assert step.graphs is None
