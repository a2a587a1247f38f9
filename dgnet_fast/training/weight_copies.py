"""Weights in autocast's dtype, made with one call for all networks.

Autocast casts a weight wherever a convolution or linear layer takes it, and casts its gradient back: 1 100 of the 7 200
calls that a step had (counted by `python -m benchmarks.launches`), on a GPU as many launches without work. Here copies
of all weights are refreshed together when these have changed, a part of the step runs with the copies in their place,
and its gradients go back to the weights together. The numbers are autocast's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

MULTIPLIED = (nn.Conv2d, nn.Linear)
"""Layers whose weight and bias autocast casts."""

TOGETHER = 32
"""Weights whose gradients are cast in one call; they wait for each other, so that more of them take more memory."""


class WeightCopies:
    """Copies in ``dtype`` of what the layers `MULTIPLIED` of ``model`` hold, 2 bytes a weight. Call `refresh` after
    weights changed; those that ask for no gradient now are taken to stay as they are.

    ``without``: a part of the model whose weights are not taken whole (G's upsampling, `upsample_conv`): their
    gradients come in pieces, which add up in the weight's own dtype and not in this one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, without: nn.Module | None = None) -> None:
        left_out = set(without.modules()) if without else set()
        found = [
            (f"{place}.", layer, name, weight)
            for place, layer in model.named_modules()
            if isinstance(layer, MULTIPLIED) and layer not in left_out
            for name, weight in layer.named_parameters(recurse=False)
        ]
        found.sort(key=lambda one: one[3].requires_grad)  # those that learn come last
        self._paths = [path for path, *_ in found]
        self._places = [(layer, name) for _, layer, name, _ in found]
        self._weights = [weight for *_, weight in found]
        self._copies = [torch.empty_like(weight, dtype=dtype) for weight in self._weights]
        self._frozen = sum(not weight.requires_grad for weight in self._weights)
        self._groups = self._grouped()
        copy_all(self._copies, self._weights)

    def _grouped(self) -> list[slice]:
        """Those that learn in groups of at most `TOGETHER`, each of one child of the model: where children learn in lanes
        of their own (lanes.py), no gradient of one may wait for another's.
        """
        children = [path.partition(".")[0] for path in self._paths]
        groups, first = [], self._frozen
        for k in range(self._frozen + 1, len(children) + 1):
            if k == len(children) or k - first == TOGETHER or children[k] != children[first]:
                groups.append(slice(first, k))
                first = k
        return groups

    def refresh(self, child: str = "") -> None:
        """Take over the weights that learn, or those of the model's child of this name."""
        begin = f"{child}." if child else ""
        those = [k for k in range(self._frozen, len(self._paths)) if self._paths[k].startswith(begin)]
        copy_all([self._copies[k] for k in those], [self._weights[k] for k in those])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model's layers hold the copies; gradients that reach these go on to the weights."""
        copies = self._copies
        if torch.is_grad_enabled():
            copies = copies[: self._frozen]
            for some in self._groups:
                copies += _Copied.apply(self._copies[some], *self._weights[some])
        # by hand: torch.func.functional_call takes 6 to 12 ms of the host for the paper's 800 parameters and buffers, this
        # 0.1, or 0.9 with the nodes for gradients above (AMD EPYC, one thread)
        try:
            for (layer, name), copy in zip(self._places, copies, strict=True):
                layer._parameters[name] = copy  # pyright: ignore[reportArgumentType]  # any tensor is taken
            yield
        finally:
            for (layer, name), weight in zip(self._places, self._weights, strict=True):
                layer._parameters[name] = weight


@torch.no_grad()
def copy_all(to: list[Tensor], tensors: list[Any]) -> None:
    """Each tensor into its place, whatever the dtypes."""
    if tensors:
        torch._foreach_copy_(to, tensors)


class _Copied(torch.autograd.Function):
    """(copies, *weights) → the copies; gradients are cast to the weights' dtype, all in one call."""

    @staticmethod
    def forward(ctx, copies: list[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [weight.dtype for weight in weights]
        return tuple(copy.detach() for copy in copies)

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        pairs = zip(grads, ctx.dtypes, strict=True)
        cast = [None if g is None else torch.empty_like(g, dtype=dtype) for g, dtype in pairs]
        copy_all([c for c in cast if c is not None], [g for g in grads if g is not None])
        return None, *cast
