"""Tests marked `gpu` skip, with a reason, where there is no CUDA device; those marked `thorough` without `--thorough`."""

from __future__ import annotations

import os
import signal

import pytest
import torch

# Nothing of a test stays in the user's cache, and no test finds what another one left; subprocesses inherit it.
os.environ["DGNET_FAST_CACHE"] = "off"
# A run leaves a signal alone that was ignored when it began, as nohup asks; the tests of signals want none ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


TOGETHER = (
    "test_parity.py",
    "distributed/test_commands.py",
    "distributed/test_runs.py",
    "distributed/test_steps.py",
    "training/test_run.py",
)
"""Files whose tests run in one process, one after the other."""


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--shard", metavar="K/N", help="run only part K (from 1) of N; needs no pytest-xdist")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    if shard := config.getoption("--shard"):
        part, parts = map(int, shard.split("/"))
        if not 1 <= part <= parts:
            raise pytest.UsageError(f"--shard is {shard}; allowed: 1/N to N/N")
        kept = items[part - 1 :: parts]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
    left_out = {}
    if not torch.cuda.is_available():
        left_out["gpu"] = "no CUDA device"
    if not config.getoption("--thorough"):
        left_out["thorough"] = "takes minutes: --thorough"
    for item in items:
        for mark, reason in left_out.items():
            if mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Recorded cases, which take gigabytes, one after the other in one process, and files whose tests share what takes
    long to make, each in one; the other tests wherever there is room. (pytest-xdist 3.8 does not find its own marks of
    groups under pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith(TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler():
    """torch.compile without the graphs of earlier tests, which would count towards its recompile limit."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
