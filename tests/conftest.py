"""Tests marked `gpu` skip, with a reason, where there is no CUDA device."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def fresh_compiler():
    """torch.compile without the graphs of earlier tests, which would count towards its recompile limit."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
