"""The passes and parts of a step on fake CUDA tensors, without a GPU, forward: no tensor of the CPU is mixed in, and the
host reads nothing. Kernels do not run; what they are given is what a GPU would give them. A process of its own, for it
loads a device guard (its argument) that PyTorch's CPU builds have not; test_fake_cuda.py runs it.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.fake_cuda import FakePrecision, fake_cuda, moved, on_fake_cuda
from dgnet_fast.data import Batch
from dgnet_fast.training.parts import (
    GENERATOR_PARTS,
    Settings,
    encode_appearance,
    fake_part,
    forward_pass,
    identity_part,
    swapped_only,
)
from dgnet_fast.training.schedule import weights_at
from tests.tiny import ALL_TERMS, tiny_batch, tiny_config, tiny_model

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
"""Operators for which the host waits."""


class OnCuda(TorchDispatchMode):
    """Every operator's tensors are on CUDA and none waits; ``seen`` are the names of operators."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        space, name = func._schema.name.split("::")
        if space not in ("prim", "profiler"):
            self.seen.add(name)
            devices = {
                x.device.type for x in tree_leaves((args, kwargs, made)) if isinstance(x, torch.Tensor)
            }
            assert devices <= {"cuda"} and name not in WAITING, (name, devices)
        return made


def run_parts(options, dtype):
    """Passes and parts of a step through each branch, forward; returns the operators called."""
    config = tiny_config(teacher="given", device="cuda", **ALL_TERMS | options)
    model = tiny_model(config, 1)
    with fake_cuda():
        on_fake_cuda(model)
        batch = Batch(*(None if t is None else moved(t) for t in tiny_batch(config)))
        terms = {}
        with OnCuda() as seen, FakePrecision(dtype).autocast():
            for branch in (True, False):
                plan = Settings(weights_at(config, 0), branch, True)
                encoded = encode_appearance(model, batch)
                terms |= identity_part(model, encoded, batch, plan)
                forward = forward_pass(model, batch, encoded.code)
                terms |= fake_part(model, forward.swapped, batch.x)
                for part in GENERATOR_PARTS:
                    terms |= part(model, forward, batch, plan)
            swapped_only(model, batch)
        assert {"dis", "recon_x", "recon_x_cyc", "id", "adv", "total"} <= terms.keys()
        assert {(t.device.type, t.dtype) for t in terms.values()} == {("cuda", torch.float32)}
        assert forward.swapped.dtype == (dtype or torch.float32)
    return seen.seen


OPTIONS = {
    "paper": {"erasing_p": 0.5},
    "normal": {"ID_style": "normal", "norm_id": True, "train_bn": False, "pool": "avg"},
    "PCB": {"ID_style": "PCB"},
    "recomputed": {"checkpoint_activations": True, "erasing_p": 0.5},
}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ctypes.CDLL(sys.argv[1])
    for name, options in OPTIONS.items():
        for dtype in (None, torch.bfloat16):
            seen = run_parts(options, dtype)
            assert {"convolution", "adain_act", "batch_norm_act", "loss_l1", "loss_identity"} <= seen, name
            assert "conv3x3" not in seen, name  # a CPU's
            print("clean:", name, dtype, flush=True)
