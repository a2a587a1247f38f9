"""upsample_weights: the filters of `upsample_conv` in one pass: what a 5×5 filter is on the four phases of a picture that is
doubled by repeating values, and its outermost rows and columns.

    phases[(2p + q)·O + o, c, r, s] = sum of weight[o, c, u, v] over (u + p) // 2 = r, (v + q) // 2 = s
    above = weight[:, :, :1]   below = weight[:, :, 4:]   before = weight[..., :1]   behind = weight[..., 4:]

The reference, the public function, what the op allocates and checks, its autograd, and its bodies; registry.py says who
serves what. As PyTorch's own calls the two passes were 22 and 30 of each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import check_device, statistics_dtype
from dgnet_fast.ops.bodies import Arguments, triton_body
from dgnet_fast.ops.define import define
from dgnet_fast.ops.layouts import memory_format
from dgnet_fast.ops.upsample_border import LINES, Five, in_one_order

KERNEL = 5


def _taps(like: Tensor) -> Tensor:
    """(2, 3, 5): 1 where tap t of phase p falls on tap (t + p) // 2 of the small picture: 0 0 1 1 2 and 0 1 1 2 2."""
    places = torch.arange(KERNEL + 1, device=like.device).div(2, rounding_mode="floor").unfold(0, KERNEL, 1)
    return (places.unsqueeze(1) == places[0, ::2, None]).to(like.dtype)


def phase_weights(weight: Tensor) -> Tensor:
    """(O, C, 5, 5) → (4·O, C, 3, 3): channel (2·p + q)·O + o serves output rows of phase p and columns of phase q.

    The order of `dgnet_fast.ops.phases`. In plain PyTorch.
    """
    taps = _taps(weight)
    return torch.einsum("pru,qsv,ocuv->pqocrs", taps, taps, weight).reshape(-1, weight.shape[1], 3, 3)


def outermost(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """above and below (O, C, 1, 5), before and behind (O, C, 5, 1), views."""
    return weight[:, :, :1], weight[:, :, -1:], weight[..., :1], weight[..., -1:]


class reference:
    """Plain PyTorch: what every body must compute."""

    @staticmethod
    def forward(weight: Tensor, dtype: torch.dtype) -> Five:
        """Returns phases, above, below, before and behind, in ``dtype``."""
        order = memory_format(weight)
        made = phase_weights(weight.to(statistics_dtype(weight))), *outermost(weight)
        phases, *lines = (t.to(dtype).contiguous(memory_format=order) for t in made)
        above, below, before, behind = (line.clone(memory_format=order) for line in lines)
        return phases, above, below, before, behind

    @staticmethod
    def backward(
        phases: Tensor, above: Tensor, below: Tensor, before: Tensor, behind: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Returns grad_weight, in ``dtype``, of the gradients of the five, added up in at least float32."""
        wide = torch.promote_types(dtype, torch.float32)
        grad = phases.to(wide).unflatten(0, (2, 2, -1))
        taps = _taps(grad)
        grad = torch.einsum("pru,qsv,pqocrs->ocuv", taps, taps, grad).clone()
        for place, line in zip(outermost(grad), (above, below, before, behind), strict=True):
            place += line
        return grad.to(dtype).contiguous(memory_format=memory_format(phases))


aten = reference


def upsample_weights(weight: Tensor, dtype: torch.dtype) -> Five:
    """The filters of `upsample_conv`, as one op.

    Args:
        weight: (O, C, 5, 5), not empty; float32, bfloat16, float16, or float64 (served by the reference).
        dtype: of the results.

    Returns:
        phases (4·O, C, 3, 3), above and below (O, C, 1, 5), before and behind (O, C, 5, 1), in weight's memory order.

    Taps are added up in float32; so are their gradients, which come back in weight's dtype, in a fixed order, and flow once:
    double backward raises RuntimeError.

    Raises:
        ValueError: shape, dtype or device other than these; DGNET_FAST_IMPL forces a body that cannot serve.
    """
    _check(weight, dtype)
    check_device("upsample_weights", weight)
    return _forward_op(weight, dtype)


def _check(weight: Tensor, dtype: torch.dtype) -> None:
    if weight.dim() != 4 or weight.shape[2:] != (KERNEL, KERNEL) or weight.numel() == 0:
        raise ValueError(f"weight must have shape (O, C, {KERNEL}, {KERNEL}), got {tuple(weight.shape)}")
    for name, one in (("weight's dtype", weight.dtype), ("dtype", dtype)):
        if one not in registry.DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(map(str, registry.DTYPES))}, got {one}")


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    count, channels = a.weight.shape[:2]
    order = memory_format(a.weight)
    row, column = (count, channels, 1, KERNEL), (count, channels, KERNEL, 1)
    shapes = (4 * count, channels, 3, 3), row, row, column, column
    made = (
        torch.empty(shape, dtype=a.dtype, device=a.weight.device, memory_format=order) for shape in shapes
    )
    return dict(zip(("phases", *LINES), made, strict=True))


def _gradients(a: Arguments) -> dict[str, Tensor]:
    shape = (a.phases.shape[0] // 4, a.phases.shape[1], KERNEL, KERNEL)
    order = memory_format(a.phases)
    return {"grad_weight": torch.empty(shape, dtype=a.dtype, device=a.phases.device, memory_format=order)}


def _prepare(a: Arguments) -> Tensor:
    _check(a.weight, a.dtype)
    a.weight = a.weight.contiguous(memory_format=memory_format(a.weight))
    return a.weight


def _prepare_backward(a: Arguments) -> Tensor:
    return in_one_order(a, "phases")


def _setup_context(ctx, a: Arguments, output: Five) -> None:
    ctx.order, ctx.dtype = memory_format(a.weight), a.weight.dtype


def _backward(ctx, phases: Tensor, *lines: Tensor) -> dict[str, Tensor]:
    return {"weight": _backward_op(phases.contiguous(memory_format=ctx.order), *lines, ctx.dtype)}


_forward_op, _backward_op = define(
    "upsample_weights",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
)

triton = triton_body("upsample_weights")
