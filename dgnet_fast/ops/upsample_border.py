"""upsample_border: what `upsample_conv` convolves of a picture, in one pass: the picture padded by its border values, and the
four lines by which reflection on the picture of twice the size differs from that.

    padded = pad1(x)
    above  = reflect2(twice(x[1] - x[0])),          below  = reflect2(twice(x[H-2] - x[H-1]))       along the rows
    before = replicate2(twice(x[:, 1] - x[:, 0])),  behind = replicate2(twice(x[:, W-2] - x[:, W-1]))   along the columns

twice repeats every value. Two lines beyond the border reflection shows the second value where replication shows the first.
Rows are padded as the large picture is and columns by their ends, so that corners come out once.

The reference, the public function, what the op allocates and checks, its autograd, and its bodies; registry.py says who
serves what. As PyTorch's own slices, copies and additions the two passes were 19 and 55 calls of each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast.ops.arguments import check_device, check_pictures
from dgnet_fast.ops.bodies import Arguments, triton_body
from dgnet_fast.ops.define import define
from dgnet_fast.ops.layouts import memory_format
from dgnet_fast.ops.padding import empty_padded, replicate_pad

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
LINES = ("above", "below", "before", "behind")


def lines_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """above, below (B, C, 1, 2W + 4), before and behind (B, C, 2H + 4, 1), in plain PyTorch."""
    return reflected_lines(x[:, :, :2], x[:, :, -2:], x[..., :2], x[..., -2:])


def reflected_lines(
    top: Tensor, bottom: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`lines_of` a picture, from its two outermost lines on each side."""
    rows = torch.cat([top[:, :, 1:] - top[:, :, :1], bottom[:, :, :1] - bottom[:, :, 1:]])
    columns = torch.cat([left[..., 1:] - left[..., :1], right[..., :1] - right[..., 1:]])
    rows, columns = rows.repeat_interleave(2, dim=3), columns.repeat_interleave(2, dim=2)
    # not F.pad: Inductor expects the gradient of a single column in another memory order than it comes (PyTorch 2.13)
    rows = torch.cat([rows[..., 2:3], rows[..., 1:2], rows, rows[..., -2:-1], rows[..., -3:-2]], dim=3)
    first, last = columns[:, :, :1], columns[:, :, -1:]
    columns = torch.cat([first, first, columns, last, last], dim=2)
    # not chunk, which an exported program with a dynamic batch cannot follow
    above, below = rows.unflatten(0, (2, -1))
    before, behind = columns.unflatten(0, (2, -1))
    return above, below, before, behind


class reference:
    """Plain PyTorch: what every body must compute."""

    @staticmethod
    def forward(x: Tensor) -> Five:
        """Returns padded, above, below, before and behind."""
        order = memory_format(x)
        padded, *lines = (t.contiguous(memory_format=order) for t in (replicate_pad(x, 1), *lines_of(x)))
        above, below, before, behind = (line.clone(memory_format=order) for line in lines)
        return padded, above, below, before, behind

    @staticmethod
    def backward(padded: Tensor, above: Tensor, below: Tensor, before: Tensor, behind: Tensor) -> Tensor:
        """Returns grad_x of the gradients of the five, added up in at least float32."""
        wide = torch.promote_types(padded.dtype, torch.float32)
        grad = padded.to(wide)
        for dim in (2, 3):
            first, inner, last = grad.split([1, grad.shape[dim] - 2, 1], dim)
            grad = inner.clone()
            grad.narrow(dim, 0, 1).add_(first)
            grad.narrow(dim, -1, 1).add_(last)
        above, below = (_from_row(line.to(wide)) for line in (above, below))
        before, behind = (_from_column(line.to(wide)) for line in (before, behind))
        for dim, near, far in ((2, above, below), (3, before, behind)):
            for line, inner, outer in ((near, 1, 0), (far, -2, -1)):
                grad.narrow(dim, inner, 1).add_(line)
                grad.narrow(dim, outer, 1).sub_(line)
        return grad.to(padded.dtype).contiguous(memory_format=memory_format(padded))


def _from_row(grad: Tensor) -> Tensor:
    """(B, C, 1, 2W + 4) to (B, C, 1, W): each copy's gradient is added to that of what it shows."""
    large = grad[..., 2:-2].clone()
    for place, copy in ((2, 0), (1, 1), (-2, -2), (-3, -1)):
        large[..., place] += grad[..., copy]
    return large.unflatten(3, (-1, 2)).sum(4)


def _from_column(grad: Tensor) -> Tensor:
    """(B, C, 2H + 4, 1) to (B, C, H, 1), in the same way."""
    large = grad[:, :, 2:-2].clone()
    large[:, :, 0] += grad[:, :, :2].sum(2)
    large[:, :, -1] += grad[:, :, -2:].sum(2)
    return large.unflatten(2, (-1, 2)).sum(3)


aten = reference


def upsample_border(x: Tensor) -> Five:
    """What `upsample_conv` convolves of x, as one op.

    Args:
        x: (B, C, H, W), H and W at least 2; float32, bfloat16, float16, or float64 (served by the reference).

    Returns:
        padded (B, C, H + 2, W + 2), above and below (B, C, 1, 2W + 4), before and behind (B, C, 2H + 4, 1), in x's dtype
        and memory order.

    Differences are rounded to x's dtype. Gradients are added up in float32, in a fixed order, and flow once: double backward
    raises RuntimeError. Autocast does not change the op.

    Raises:
        ValueError: shape, dtype or device other than these; DGNET_FAST_IMPL forces a body that cannot serve.
    """
    check_device("upsample_border", x)
    return _forward_op(x)


def _check(x: Tensor) -> None:
    check_pictures(x)
    if min(x.shape[2:]) < 2:
        raise ValueError(f"x must have H and W of at least 2, got shape {tuple(x.shape)}")


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    batch, channels, height, width = a.x.shape
    row, column = (batch, channels, 1, 2 * width + 4), (batch, channels, 2 * height + 4, 1)
    order = memory_format(a.x)
    lines = (
        torch.empty(shape, dtype=a.x.dtype, device=a.x.device, memory_format=order)
        for shape in (row, row, column, column)
    )
    return {"padded": empty_padded(a.x, 1), **dict(zip(LINES, lines, strict=True))}


def _gradients(a: Arguments) -> dict[str, Tensor]:
    return {"grad_x": empty_padded(a.padded, -1)}


def _prepare(a: Arguments) -> Tensor:
    _check(a.x)
    a.x = a.x.contiguous(memory_format=memory_format(a.x))
    return a.x


def in_one_order(a: Arguments, first: str) -> Tensor:
    """Bring the tensors of `LINES` into the memory order of the one named ``first``, and return this one."""
    order = memory_format(getattr(a, first))
    for name in (first, *LINES):
        setattr(a, name, getattr(a, name).contiguous(memory_format=order))
    return getattr(a, first)


def _prepare_backward(a: Arguments) -> Tensor:
    return in_one_order(a, "padded")


def _setup_context(ctx, a: Arguments, output: Five) -> None:
    ctx.order = memory_format(output[0])


def _backward(ctx, padded: Tensor, *lines: Tensor) -> dict[str, Tensor]:
    return {"x": _backward_op(padded.contiguous(memory_format=ctx.order), *lines)}


_forward_op, _backward_op = define(
    "upsample_border",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
)

triton = triton_body("upsample_border")
