"""What the runs of every objective write into their folder before the first step, and say after the last one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from dgnet_fast.distributed import processes
from dgnet_fast.report.environment import write_environment
from dgnet_fast.report.files import clean_temporaries
from dgnet_fast.report.log import format_duration
from dgnet_fast.training.loop import peak_memory
from dgnet_fast.training.optim import Precision

logger = logging.getLogger(__name__)


def begin_folder(
    folder: Path, device: torch.device, precision: Precision, amp: str, write_options: Callable[[str], None]
) -> str:
    """Make the folder, and write environment.json and, by ``write_options(remark)``, config.yaml; returns the name of the
    precision in force. ``amp`` is the option that led to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes.barrier()  # all have checked what is there before the first of them changes it
    if processes.is_first():
        clean_temporaries(folder)
    kind = str(precision.dtype).removeprefix("torch.") if precision.dtype else "float32"
    write_options(f"{kind} on {device} was in force in this run (amp {amp}, device {device})")
    write_environment(folder, device=str(device), precision=kind)
    return kind


def say_steps(steps: int, seconds: float, device: torch.device) -> None:
    """What the steps of a run took, in the log."""
    logger.info(
        f"{steps} steps in {format_duration(seconds)}, {seconds / steps:.3g} s a step, "
        f"peak memory {peak_memory(device) / 1e9:.2f} GB"
    )
