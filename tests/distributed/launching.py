"""Starts processes as a launcher does, on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(rank: int, size: int, port: int, **more: str) -> dict[str, str]:
    """What torchrun would set for a process, one thread, and a patience of seconds."""
    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DGNET_FAST_TIMEOUT": "60",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    } | more  # fmt: skip


def start(words: list[str], size: int = 2, **more: str) -> list[subprocess.Popen]:
    """``python WORDS`` in ``size`` processes that are one run."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=environment(rank, size, port, **more),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]


def finish(started: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """(status, standard output, standard error) of each process."""
    try:
        ended = [(one, one.communicate(timeout=timeout)) for one in started]
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, *texts) for one, texts in ended]


def together(words: list[str], size: int = 2, **more: str) -> list[tuple[int, str, str]]:
    """`start` and `finish`; all processes must succeed."""
    ended = finish(start(words, size, **more))
    for status, _, error in ended:
        assert status == 0, error[-2000:]
    return ended


def by_torchrun(words: list[str], size: int = 2, *options: str) -> subprocess.CompletedProcess[str]:
    """``python WORDS`` in ``size`` processes that PyTorch's own launcher starts, with its ``options``."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), "--standalone"]
    space = {
        k: v for k, v in environment(0, size, 0).items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    return subprocess.run(
        [*launcher, *options, *map(str, words)],
        env=space,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
