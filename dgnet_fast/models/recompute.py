"""Activation checkpointing: a block's inner activations are dropped and computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dgnet_fast.models.batch_norm import BatchNormMode


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)`` without keeping what it computes on the way, where a gradient is wanted at all.

    ``function`` must give the same twice: nothing random, nothing updated, and weights taken from ``tensors``
    where a frozen view of a module (`torch.func.functional_call`) may be gone by the time of the second call. (Copies
    in low precision, `training.weight_copies`, are gone too; autocast then makes them again of the same weights.)
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


def recomputed_block(block: nn.Module, x: Tensor, mode: BatchNormMode) -> Tensor:
    """``block(x, mode)`` of a residual block of E_a, its activations computed again in the backward pass.

    The second time its running statistics are copies and those it finds are thrown away, so that nothing is updated
    twice; in mode ``running``, where they are read, they are copies of what the first time saw, since another pass may
    have changed them in between.
    Not for torch.compile, whose backward pass refuses buffers that changed in between.
    """
    if not torch.is_grad_enabled():
        return block(x, mode)
    tensors: dict[str, Tensor] = dict(block.named_parameters())
    if mode.statistics == "running":
        tensors |= {name: buffer.clone() for name, buffer in block.named_buffers()}
    calls = []

    def run(x: Tensor) -> Tensor:
        mine, how = tensors, mode
        calls.append(1)
        if len(calls) > 1 and mode.statistics == "update":
            mine = tensors | {name: buffer.clone() for name, buffer in block.named_buffers()}
            how = mode._replace(found=[])
        return torch.func.functional_call(block, mine, (x, how))

    return recomputed(run, x)
