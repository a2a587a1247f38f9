"""A seeded slice of the campaign, in less than a minute; `make stress` runs all of it."""

from __future__ import annotations

import random

import pytest

from tests.stress import damage, fuzz, kills, tensors
from tests.stress.harness import Budget
from tests.stress.jobs import JOBS, Ground

QUICK = tuple(job for job in JOBS if job.name in ("generate set", "search index", "convert"))
KINDS = tuple(kind for kind in fuzz.KINDS if kind != "resumed checkpoints")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    pytest.importorskip("faiss")
    made = Ground(tmp_path_factory.mktemp("stress"))
    fuzz.prepare(made, KINDS)
    return made


@pytest.mark.parametrize("section", [kills.every_change, kills.at_random, kills.full_disk, kills.two_at_once])
def test_interrupted_jobs(ground, section):
    found = section(ground, Budget(2, least=3), random.Random(0), QUICK)
    assert found.cases >= 3 and not found.failures, found.failures[:5]


def test_flipped_bits(ground):
    found = damage.flipped_bits(ground, Budget(2, least=60), random.Random(0))
    assert not found.failures, found.failures[:5]


def test_hostile_input(ground):
    for found in fuzz.hostile_input(ground, Budget(5), random.Random(0), KINDS):
        assert not found.failures, found.failures[:5]


def test_hostile_tensors():
    found = tensors.hostile_tensors(Budget(2, least=1), random.Random(0))
    assert not found.failures, found.failures[:5]
