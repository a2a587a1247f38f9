"""Tests marked `gpu` skip, with a reason, where there is no CUDA device."""

from __future__ import annotations

import os

import pytest
import torch

# Nothing of a test stays in the user's cache, and no test finds what another one left; subprocesses inherit it.
os.environ["DGNET_FAST_CACHE"] = "off"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


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
