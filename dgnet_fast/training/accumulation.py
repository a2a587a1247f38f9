"""Gradients of several backward passes, added up with one call for all weights.

``Tensor.backward`` adds a gradient to what a weight already has weight by weight: 372 calls of a step (`python -m
benchmarks.launches`), on a GPU as many launches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def add_gradients(
    tensors: Sequence[Tensor], gradients: Sequence[Tensor] | None, leaves: Iterable[Tensor]
) -> None:
    """``torch.autograd.backward(tensors, gradients)`` as far as ``leaves``, which may hold some that are not reached.

    The numbers are the same, and so is the memory order: a gradient lies as its leaf does.
    """
    known = list({id(leaf): leaf for leaf in leaves if leaf.requires_grad}.values())
    if not known:
        return
    found = torch.autograd.grad(tensors, known, gradients, allow_unused=True)
    sums: list[Tensor] = []
    more: list[Tensor] = []
    taken: set[int] = set()
    for leaf, gradient in zip(known, found, strict=True):
        if gradient is None:
            continue
        if leaf.grad is not None:
            sums.append(leaf.grad)
            more.append(gradient)
            continue
        # what lies in memory that another leaf got too, or is expanded, cannot be added to in place
        if gradient.untyped_storage()._cdata in taken or not _lies_as(gradient, leaf):
            gradient = torch.empty_like(leaf).copy_(gradient)
        taken.add(gradient.untyped_storage()._cdata)
        leaf.grad = gradient
    if sums:
        torch._foreach_add_(sums, more)


def _lies_as(gradient: Tensor, leaf: Tensor) -> bool:
    if gradient.stride() == leaf.stride():
        return True
    sizes = zip(gradient.shape, gradient.stride(), leaf.stride(), strict=True)
    return all(size == 1 or one == other for size, one, other in sizes)
