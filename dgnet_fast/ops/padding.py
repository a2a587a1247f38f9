"""Padding by the rules of `torch.nn.functional.pad`: reflect, which repeats not the border line itself, as part of an op
whose result the next convolution reads; replicate; and the way back.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops.layouts import memory_format


def check_padding_is_int(padding: int) -> None:
    """ValueError for what an op's schema would refuse less clearly."""
    if isinstance(padding, bool) or not isinstance(padding, (int, torch.SymInt)):
        raise ValueError(f"padding must be an int, got {padding!r}")


def check_padding(padding: int, x: Tensor) -> None:
    """ValueError unless `padding` is an int from 0 to one less than the smaller side of x (B, C, H, W)."""
    check_padding_is_int(padding)
    smallest = min(x.shape[2:])
    if not 0 <= padding < smallest:
        raise ValueError(
            f"padding must be at least 0 and smaller than H and W = {tuple(x.shape[2:])}, got {padding}"
        )


def padded_shape(x: Tensor, padding: int) -> tuple[int, int, int, int]:
    """Returns (B, C, H + 2 padding, W + 2 padding)."""
    batch, channels, height, width = x.shape
    return batch, channels, height + 2 * padding, width + 2 * padding


def empty_padded(x: Tensor, padding: int) -> Tensor:
    """Allocates a tensor of the padded shape, in x's dtype and memory order."""
    order = memory_format(x)
    return torch.empty(padded_shape(x, padding), dtype=x.dtype, device=x.device, memory_format=order)


def reflect_pad(y: Tensor, padding: int) -> Tensor:
    """Pads y (B, C, H, W) on every side; differentiable at any order."""
    return F.pad(y, (padding,) * 4, mode="reflect") if padding else y


def replicate_pad(y: Tensor, padding: int) -> Tensor:
    """Pads y (B, C, H, W) on every side by its border values; differentiable at any order.

    Compiled without `F.pad`: Inductor expects the gradient of that in another memory order than it comes (PyTorch 2.13).
    """
    if padding == 0:
        return y
    if not torch.compiler.is_compiling():
        return _Replicated.apply(y, padding) if y.is_cuda else F.pad(y, (padding,) * 4, mode="replicate")
    for dim in (2, 3):
        first, last = y.narrow(dim, 0, 1), y.narrow(dim, y.shape[dim] - 1, 1)
        y = torch.cat([first] * padding + [y] + [last] * padding, dim=dim)
    return y


def fold_reflection(grad: Tensor, padding: int) -> Tensor:
    """Adjoint of `reflect_pad`: (B, C, H + 2p, W + 2p) to (B, C, H, W), each border value added to its source.

    In grad's dtype; deterministic on every device, which PyTorch's own is not on CUDA.
    """
    if padding == 0:
        return grad
    for dim in (2, 3):
        size = grad.shape[dim] - 2 * padding
        folded = grad.narrow(dim, padding, size).clone()
        folded.narrow(dim, 1, padding).add_(grad.narrow(dim, 0, padding).flip(dim))
        folded.narrow(dim, size - 1 - padding, padding).add_(
            grad.narrow(dim, padding + size, padding).flip(dim)
        )
        grad = folded
    return grad


class _Replicated(torch.autograd.Function):
    """`replicate_pad` for CUDA, where PyTorch's own (by its source: not measured) writes NCHW whatever it reads, which the
    next convolution copies back, and adds up its gradient by atomics, in another order each time. Here both ways are in
    y's memory order, one pass over the picture.
    """

    @staticmethod
    def forward(ctx, y: Tensor, padding: int) -> Tensor:
        ctx.padding, ctx.order = padding, memory_format(y)
        padded = empty_padded(y, padding)
        padded[:, :, padding:-padding, padding:-padding] = y
        for dim in (2, 3):
            last = padded.shape[dim] - padding
            padded.narrow(dim, 0, padding).copy_(padded.narrow(dim, padding, 1))
            padded.narrow(dim, last, padding).copy_(padded.narrow(dim, last - 1, 1))
        return padded

    @staticmethod
    def backward(ctx, grad: Tensor):
        sizes = {dim: grad.shape[dim] - 2 * ctx.padding for dim in (2, 3)}
        # per dimension: the border before, the picture, the border after, and what of the picture each shows
        spans = {
            dim: (
                (0, ctx.padding, 0, 1),
                (ctx.padding, size, 0, size),
                (ctx.padding + size, ctx.padding, size - 1, 1),
            )
            for dim, size in sizes.items()
        }
        (_, rows, _), (_, columns, _) = spans.values()
        grad = grad.contiguous(memory_format=ctx.order)
        folded = grad.narrow(2, *rows[:2]).narrow(3, *columns[:2]).clone(memory_format=ctx.order)
        for row, column in itertools.product(*spans.values()):
            if (row, column) == (rows, columns):
                continue
            part = grad.narrow(2, *row[:2]).narrow(3, *column[:2])
            shown = folded.narrow(2, *row[2:]).narrow(3, *column[2:])
            sums = [dim for dim in (2, 3) if part.shape[dim] != shown.shape[dim]]
            shown.add_(part.sum(sums, keepdim=True) if sums else part)
        return folded, None


class _Interior(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, padding: int) -> Tensor:
        ctx.padding = padding
        return y[:, :, padding:-padding, padding:-padding]

    @staticmethod
    def backward(ctx, grad: Tensor):
        return F.pad(grad, (ctx.padding,) * 4), None


def interior(y: Tensor, padding: int) -> Tensor:
    """The picture within a padded y, as a view; differentiable at any order.

    Slicing computes the same, but the gradient of a slice of a channels_last y comes in NCHW order and costs two
    slow passes; this one keeps the order.
    """
    return _Interior.apply(y, padding) if padding else y


class _Parted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        ctx.padding = padding
        ctx.set_materialize_grads(False)
        return y.view_as(y), y[:, :, padding:-padding, padding:-padding]

    @staticmethod
    def backward(ctx, grad: Tensor | None, inner: Tensor | None):
        if inner is None:
            return grad, None
        if grad is None or torch.is_grad_enabled():  # one that is differentiated again is not changed
            padded = F.pad(inner, (ctx.padding,) * 4)
            return padded if grad is None else grad + padded, None
        # not `grad[...] += inner`, which Python ends with a copy of the sum onto itself
        grad[:, :, ctx.padding : -ctx.padding, ctx.padding : -ctx.padding].add_(inner)
        return grad, None


def with_interior(y: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """y, padded, and the picture within, as views, for a block whose convolution reads the one and whose sum the other;
    differentiable at any order.

    The gradient of the picture is added in place to that of y, which must be the convolution's and nobody else's: `interior`
    makes a picture of its own of it, with a border of zeros, and autograd a third one of the sum.
    """
    if padding == 0 or torch.compiler.is_compiling():
        return y, interior(y, padding)
    return _Parted.apply(y, padding)
