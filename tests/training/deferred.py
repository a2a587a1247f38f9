"""Steps that leave their checks to the end, as on CUDA, and bad batches, for tests of them."""

from __future__ import annotations

import math

import pytest
import torch

from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.step import TrainingStep
from tests.tiny import tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
F64 = torch.float64


def deferred_step(config, dtype=torch.float32, recorder=None, amp=None, **options):
    """A step that leaves its checks to the end, as on CUDA, with fused optimisers."""
    model = tiny_model(config, 1 if config.teacher else 0, dtype)
    optimisers = Optimisers(model, config, fused=True)
    return TrainingStep(model, optimisers, Precision(amp, CPU), deferred=True, recorder=recorder, **options)


OURS = {"muon": 30.0, "real_batch": 4, "code_w": 0.5}
"""Options that the paper does not have, with values that switch them on."""

LOW = pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["fp32", "bf16"])


def poisoned(batch, place="x"):
    pictures = getattr(batch, place).clone()
    pictures[1, -1, 0, 3, 4] = math.nan
    return batch._replace(**{place: pictures})
