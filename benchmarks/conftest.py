"""Benchmarks say what they ran on; `--record-results` writes them to benchmarks/results/."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
import torch

import dgnet_fast

RESULTS = Path(__file__).parent / "results"


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"


def pytest_addoption(parser):
    parser.addoption(
        "--record-results", action="store_true", help="write benchmarks/results/<machine>-<date>.json"
    )


def pytest_configure(config):
    if config.getoption("--record-results"):
        RESULTS.mkdir(exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{_machine()} {datetime.date.today()}")
        # pytest-benchmark holds an open file here; it writes and closes it at the end.
        config.option.benchmark_json = open(RESULTS / f"{name}.json", "wb")


def pytest_benchmark_update_machine_info(config, machine_info):
    # Replaces what pytest-benchmark collects (host name, CPU flags): only what a reader can compare is
    # recorded.
    machine_info.clear()
    machine_info.update(
        machine=_machine(),
        torch=torch.__version__,
        dgnet_fast=dgnet_fast.__version__,
        threads=torch.get_num_threads(),
        malloc_keeps_large_blocks=dgnet_fast.malloc_kept,
    )


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    """cuda where there is one, else cpu: the CPU's figures come from machines without a GPU."""
    has_cuda = torch.cuda.is_available()
    if request.param == "cuda" and not has_cuda:
        pytest.skip("no CUDA device")
    if request.param == "cpu" and has_cuda:
        pytest.skip("a CUDA device is measured instead")
    return request.param
