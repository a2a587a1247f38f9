"""The alarm: quiet on healthy runs, early on those that diverge."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dgnet_fast.training.alarm import WATCHED, WINDOW, DivergenceAlarm, Watched

FALLING = {"loss": Watched(0.5, "lower --lr2")}


def said(values, watched=FALLING, **options):
    """(step, text) of everything said about values logged every ten steps."""
    alarm = DivergenceAlarm(watched, **options)
    texts = []
    for k, value in enumerate(values):
        texts += [(10 * (k + 1), text) for text in alarm.observe(10 * (k + 1), {"loss": value})]
    return texts


def test_the_rule_on_plain_numbers():
    """4 at the start, 1 at the best: half of the gain is given back above 2.5."""
    rise = [4.0] * 3 + [1.0] * 5
    assert said([*rise, *[2.4] * 20], window=3) == []
    ((step, text),) = said([*rise, *[2.6] * 20], window=3)
    assert step == 120  # the level passes with the second value above, and has stayed there for three
    assert text == (
        "loss diverges since about step 90: 2.6 now, 1 at its best around step 40, 4 at the start; lower --lr2 "
        "(an earlier checkpoint may be better)"
    )


def test_it_speaks_once_until_the_loss_has_come_back():
    bad, good = [9.0] * 20, [1.0] * 20
    assert len(said([*[4.0] * 12, *good, *bad, *bad])) == 1
    assert len(said([*[4.0] * 12, *good, *bad, *good, *bad])) == 2


@pytest.mark.parametrize("seed", range(5))
def test_quiet_on_noise_on_spikes_and_on_a_plateau(seed):
    random = np.random.RandomState(seed)
    steps = np.arange(400)
    falling = 0.3 + 4 * np.exp(-steps / 60)
    noisy = falling * random.lognormal(0, 0.4, 400)
    noisy[::37] *= 20  # single bad batches
    assert said(noisy) == []
    assert said(2 + 0.3 * random.randn(400), WATCHED | {"loss": Watched(2.0, "")}) == []


def test_early_on_a_loss_that_leaves_its_optimum_slowly():
    """An identity loss that falls from 4.2 to 0.1 and then doubles every 200 steps, with the noise of small batches."""
    random = np.random.RandomState(0)
    steps = 10 * np.arange(1, 401)
    level = np.where(steps < 1500, 0.1 + 4.1 * np.exp(-steps / 200), 0.1 * 2 ** ((steps - 1500) / 200))
    texts = said(level * random.lognormal(0, 0.5, 400))
    assert len(texts) == 1 and 2000 < texts[0][0] < 2700  # half of the gain lies at step 2 380
    assert "lower --lr2" in texts[0][1]


def test_what_is_not_finite_or_not_there_is_left_out():
    alarm = DivergenceAlarm(FALLING, window=3)
    for k, value in enumerate([4.0, math.nan, 4.0, math.inf, 4.0, 1.0, 1.0, 1.0]):
        assert alarm.observe(k, {"loss": value, "other": 1e9}) == []
    assert alarm.observe(9, {}) == []


def test_a_loss_that_only_rises():
    assert said([1.0] * WINDOW + [1.9] * 30) == []
    assert len(said([1.0] * WINDOW + [2.1] * 30)) == 1


def test_the_watched_losses_are_terms_that_every_step_has():
    from tests.training.test_step import ALWAYS

    assert set(WATCHED) <= ALWAYS | {"dis"}
