"""Ramps and decays at given steps of the paper's schedule."""

from __future__ import annotations

import pytest

from dgnet_fast.config import Config
from dgnet_fast.training.schedule import decay_at, weights_at


@pytest.mark.parametrize(
    "step, reconstruction, cycle, teacher",
    [
        (0, 0.0, 0.0, 0.0),
        (29_999, 0.0, 0.0, 0.0),
        (30_000, 0.0, 0.0, 0.0),
        (30_001, 0.0005, 0.0005, 0.0005),
        (31_000, 0.5, 0.5, 0.5),
        (31_999, 0.9995, 0.9995, 0.9995),
        (32_000, 1.0, 1.0, 1.0),
        (32_001, 1.0, 1.0005, 1.0005),
        (33_999, 1.0, 1.9995, 1.9995),
        (34_000, 1.0, 2.0, 2.0),
        (99_999, 1.0, 2.0, 2.0),
    ],
)
def test_ramps_of_the_paper(step, reconstruction, cycle, teacher):
    weights = weights_at(Config(), step)
    assert weights.recon_f_w == weights.recon_s_w == pytest.approx(reconstruction, abs=1e-12)
    assert weights.recon_x_cyc_w == pytest.approx(cycle, abs=1e-12)
    assert weights.teacher_w == pytest.approx(teacher, abs=1e-12)


def test_a_closed_ramp_is_the_sum_of_its_steps():
    config = Config(warm_iter=5, warm_teacher_iter=9, warm_scale=0.3, recon_f_w=0.2, teacher_w=0.1, max_w=1.0)
    found = {"recon_f_w": 0.2, "teacher_w": 0.1}
    for step in range(20):
        if step > 5:
            found["recon_f_w"] = min(found["recon_f_w"] + 0.3, 1.0)
        if step > 9:
            found["teacher_w"] = min(found["teacher_w"] + 0.3, 2.0)
        weights = weights_at(config, step)
        for name, value in found.items():
            assert getattr(weights, name) == pytest.approx(value, abs=1e-12), step


def test_initial_weights_hold_until_the_ramps():
    config = Config(recon_f_w=0.3, recon_s_w=0.4, recon_x_cyc_w=0.5, teacher_w=0.6)
    assert tuple(weights_at(config, 30_000)) == (0.3, 0.4, 0.5, 0.6)
    assert weights_at(config, 30_002).recon_s_w == pytest.approx(0.401)


@pytest.mark.parametrize(
    "step, factor",
    [
        (0, 1),
        (59_999, 1),
        (60_000, 0.1),
        (89_999, 0.1),
        (90_000, 0.01),
        (104_999, 0.01),
        (105_000, 0.001),
        (10**6, 0.001),
    ],
)
def test_multistep_milestones(step, factor):
    assert decay_at(Config(), step, 0.1) == pytest.approx(factor, rel=1e-12)


def test_step_and_constant_policies():
    config = Config(lr_policy="step", step_size=10)
    assert [decay_at(config, s, 0.5) for s in (0, 9, 10, 19, 20, 35)] == [1, 1, 0.5, 0.5, 0.25, 0.125]
    assert decay_at(Config(lr_policy="constant"), 10**6, 0.1) == 1


def test_cosine_falls_to_nothing_at_the_end():
    config = Config(lr_policy="cosine", max_iter=4)
    root = 0.5**0.5
    wanted = [1, (1 + root) / 2, 0.5, (1 - root) / 2, 0, 0]
    assert [decay_at(config, s, 0.1) for s in range(6)] == pytest.approx(wanted, abs=1e-12)


def test_warm_up_rises_in_equal_steps():
    config = Config(lr_policy="step", step_size=4, warm_up=3)
    assert [decay_at(config, s, 0.5) for s in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 0.5, 0.5])
