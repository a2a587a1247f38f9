"""A seeded slice of the campaign, in less than a minute; `make stress` runs all of it."""

from __future__ import annotations

import random
import time

import pytest

from tests.stress import damage, fuzz, kills, tensors
from tests.stress.jobs import JOBS, Ground

QUICK = tuple(
    job for job in JOBS if job.name in ("generate set", "search index", "convert", "extract", "caching")
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    pytest.importorskip("faiss")
    made = Ground(tmp_path_factory.mktemp("stress"))
    fuzz.prepare(made)
    return made


@pytest.mark.parametrize("section", [kills.every_change, kills.at_random, kills.full_disk, kills.two_at_once])
def test_interrupted_jobs(ground, section):
    found = section(ground, time.monotonic() + 4, random.Random(0), QUICK)
    assert found.cases and not found.failures, found.failures[:5]


def test_flipped_bits(ground):
    found = damage.flipped_bits(ground, time.monotonic() + 3, random.Random(0), least=60)
    assert not found.failures, found.failures[:5]


def test_hostile_input(ground):
    kinds = tuple(kind for kind in fuzz.KINDS if kind != "resumed checkpoints")
    for found in fuzz.hostile_input(ground, time.monotonic() + 8, random.Random(0), kinds):
        assert not found.failures, found.failures[:5]


def test_hostile_tensors():
    found = tensors.hostile_tensors(time.monotonic() + 2, random.Random(0))
    assert not found.failures, found.failures[:5]
