"""Weights in autocast's dtype, made with one call for all networks.

Autocast casts a weight wherever a convolution or linear layer takes it, and casts its gradient back: 1 100 of a step's
7 200 calls (`python -m benchmarks.launches`), on a GPU as many launches without work. Here copies of all weights are
refreshed together when these have changed, a part of the step runs with the copies in their place, and its gradients
go back to the weights together. The numbers are autocast's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MULTIPLIED = (nn.Conv2d, nn.Linear)
"""Layers whose weight and bias autocast casts."""


class WeightCopies:
    """Copies in ``dtype`` of what the layers `MULTIPLIED` of ``model`` hold. Call `refresh` after weights changed.

    ``without``: a part of the model whose weights are not taken whole (G's upsampling, `upsample_conv`): their
    gradients come in pieces, which add up in the weight's own dtype and not in this one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, without: nn.Module | None = None) -> None:
        self._model = _Holder(model)
        left_out = set(without.modules()) if without else set()
        self._weights = {
            f"model.{place}.{name}": weight
            for place, layer in model.named_modules()
            if isinstance(layer, MULTIPLIED) and layer not in left_out
            for name, weight in layer.named_parameters(recurse=False)
        }
        self._copies = {name: torch.empty_like(w, dtype=dtype) for name, w in self._weights.items()}
        self._learning = [name for name, weight in self._weights.items() if weight.requires_grad]
        self.refresh()

    @torch.no_grad()
    def refresh(self, part: str = "") -> None:
        """Take over the weights, or those of the model's child ``part``."""
        names = [name for name in self._weights if name.startswith(f"model.{part}")]
        torch._foreach_copy_([self._copies[n] for n in names], [self._weights[n] for n in names])

    def tensors(self) -> dict[str, Tensor]:
        """The copies, for one part of the step: gradients that reach them go on to the weights."""
        copies = dict(self._copies)
        if torch.is_grad_enabled():
            learning = [self._weights[name] for name in self._learning]
            passed = _Copied.apply([copies[name] for name in self._learning], *learning)
            copies.update(zip(self._learning, passed, strict=True))
        return copies

    def run(self, function: Callable, tensors: dict[str, Tensor], *args: Any, **options: Any) -> Any:
        """``function(model, *args, **options)`` with ``tensors`` in the place of the weights."""
        return torch.func.functional_call(self._model, tensors, (function, *args), options)


class _Holder(nn.Module):
    """Calls functions of a model as if they were its methods, which is what `torch.func.functional_call` calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable, *args: Any, **options: Any) -> Any:
        return function(self.model, *args, **options)


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
        torch._foreach_copy_([c for c in cast if c is not None], [g for g in grads if g is not None])
        return None, *cast
