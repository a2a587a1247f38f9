"""The package inside another program: it leaves that program's random streams, signals, default dtype and streams alone."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch

from dgnet_fast import Extractor
from dgnet_fast.training.run import run_training
from tests.tiny import tiny_config
from tests.tiny_run import DATA, tiny_run

SHORT = {
    "max_iter": 2,
    "teacher_steps": 2,
    "teacher_batch": 4,
    "batch_size": 2,
    "image_display_iter": 9,
    "image_save_iter": 9,
}


@pytest.fixture(autouse=True)
def a_program_of_its_own(monkeypatch):
    """What commands of earlier tests have set up for the package's log does not count here."""
    logger = logging.getLogger("dgnet_fast")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    before = logger.level
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(before)


def state():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_default_dtype()


def assert_same(one, other):
    assert torch.equal(one[0], other[0]) and np.array_equal(one[1], other[1]) and one[2] == other[2]


def test_an_extractor_draws_nothing_from_the_callers_stream(tmp_path):
    _, run = tiny_run(tmp_path / "run")
    before = state()
    features = Extractor(run, device="cpu")(np.zeros((40, 24, 3), dtype=np.uint8))
    assert_same(state(), before)
    assert features.shape[0] == 1


def test_training_in_another_thread_leaves_the_callers_state_alone_and_says_nothing(tmp_path, capfd):
    before, found = state(), []
    config = tiny_config(**DATA | SHORT, teacher="auto")
    thread = threading.Thread(target=lambda: found.append(run_training(config, tmp_path / "run")))
    thread.start()
    thread.join()
    assert found and found[0]["step"] == 2 and found[0]["tables"]
    assert_same(state(), before)
    assert capfd.readouterr() == ("", "")
