"""Nearest ×2 upsampling followed by a 5×5 convolution, computed on the small picture.

Nearest upsampling repeats every value, so of a 5×5 kernel's 25 taps on the large picture only 3×3 meet different values.
The output's four phases (even or odd row, even or odd column) are four 3×3 convolutions of the small picture with summed
taps: 9 multiplications where the plain form has 25. Zero and replicate padding carry over to the small picture. With
reflection on the large picture the outermost output line on each side sees one value that the phases do not; it is
corrected by a one-dimensional convolution along that line.

Plain PyTorch around `conv3x3`: any dtype and device, the result in x's memory order, differentiable to any order by
autograd, but not under the transforms of torch.func with reflection, nor on CUDA with replication.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.ops.conv3x3 import conv3x3
from dgnet_fast.ops.layouts import memory_format
from dgnet_fast.ops.padding import replicate_pad

KERNEL = 5


def upsample_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, pad_type: str = "reflect"
) -> Tensor:
    """The plain form: nearest ×2, pad by 2, convolve. Same arguments as `upsample_conv`."""
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    if pad_type == "zero":
        return F.conv2d(x, weight, bias, padding=2)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode=pad_type), weight, bias)


def phase_weights(weight: Tensor) -> Tensor:
    """(O, C, 5, 5) → (4·O, C, 3, 3): channel (2·p + q)·O + o serves output rows of phase p and columns of phase q.

    Phases before channels, so that `_interleaved` copies rows of neighbours in channels_last.
    """
    # Tap t of phase p falls on tap (t + p) // 2 of the small picture: 0 0 1 1 2 and 0 1 1 2 2.
    places = torch.arange(KERNEL + 1, device=weight.device).div(2, rounding_mode="floor").unfold(0, KERNEL, 1)
    taps = (places.unsqueeze(1) == places[0, ::2, None]).to(weight.dtype)
    return torch.einsum("pru,qsv,ocuv->pqocrs", taps, taps, weight).reshape(-1, weight.shape[1], 3, 3)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None, pad_type: str = "reflect") -> Tensor:
    """conv5×5(pad2(nearest×2(x))): x (B, C, H, W), weight (O, C, 5, 5), bias (O,) or None → (B, O, 2H, 2W).

    ``pad_type`` reflect, replicate or zero, as applied to the large picture. Equal to `upsample_conv_reference` up to
    rounding. Raises ValueError for another kernel size, channel mismatch or padding.
    """
    if weight.ndim != 4 or weight.shape[2:] != (KERNEL, KERNEL):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; allowed: (O, C, {KERNEL}, {KERNEL})")
    if x.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (B, {weight.shape[1]}, H, W)")
    if pad_type not in ("reflect", "replicate", "zero"):
        raise ValueError(f"pad_type is {pad_type!r}; allowed: reflect, replicate, zero")
    if pad_type == "reflect" and min(x.shape[2:]) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; reflection needs H and W of at least 2")
    # compiled, PyTorch's own slices and additions in place are part of the graph
    whole = torch.compiler.is_compiling()
    if pad_type == "reflect":
        x, *outermost = _slices(x) if whole else _Slices.apply(x)
    if pad_type == "zero":
        small = conv3x3(x, phase_weights(weight), padding=1)
    else:
        small = conv3x3(replicate_pad(x, 1), phase_weights(weight))
    if whole:
        y = _phases(small).flatten(4, 5).flatten(2, 3).contiguous(memory_format=memory_format(small))
        y = y if bias is None else y + bias.view(-1, 1, 1)
    else:
        y = _Interleave.apply(small, bias)
    if pad_type != "reflect":
        return y
    top, bottom, left, right = outermost
    lines = _reflection(top, bottom, left, right, weight)
    return _add_border(y, *lines) if whole else _AddBorder.apply(y, *lines)


def _phases(small: Tensor) -> Tensor:
    """(B, 4·O, H, W) → (B, O, H, 2, W, 2), a view."""
    return small.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2)


class _Interleave(torch.autograd.Function):
    """The phases (B, 4·O, H, W) as one picture (B, O, 2H, 2W), plus the bias (O,) or None, in one pass and in the phases'
    memory order: `F.pixel_shuffle` on CUDA answers in NCHW, whatever it reads.
    """

    @staticmethod
    def forward(small: Tensor, bias: Tensor | None) -> Tensor:
        batch, channels, height, width = small.shape
        shape = (batch, channels // 4, 2 * height, 2 * width)
        order = memory_format(small)
        y = torch.empty(shape, dtype=small.dtype, device=small.device, memory_format=order)
        places = y.unflatten(3, (width, 2)).unflatten(2, (height, 2))
        if bias is None:
            places.copy_(_phases(small))
        else:
            torch.add(_phases(small), bias.to(y.dtype).view(-1, 1, 1, 1, 1), out=places)
        return y

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        small, bias = inputs
        ctx.order, ctx.dtype = memory_format(small), None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        to_small = to_bias = None
        if ctx.needs_input_grad[0]:
            phases = grad.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 3, 5, 1, 2, 4)
            # first in the order of the result: `flatten` would make a copy in another one
            if ctx.order == torch.channels_last:
                to_small = phases.permute(0, 4, 5, 1, 2, 3).flatten(3).permute(0, 3, 1, 2)
            else:
                to_small = phases.flatten(1, 3)
        if ctx.needs_input_grad[1]:
            to_bias = grad.sum((0, 2, 3), dtype=ctx.dtype)
        return to_small, to_bias


def _slices(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, and its two outermost lines on each side: top, bottom, left and right."""
    return x, x[:, :, :2], x[:, :, -2:], x[..., :2], x[..., -2:]


class _Slices(torch.autograd.Function):
    """`_slices`, whose gradient is x's with something added along its border; autograd would make a picture of zeros
    for each slice and add them all up.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, ...]:
        _, *lines = _slices(x)
        # not `view_as`, whose strides of one picture in channels_last are no longer known to be in that order
        return x.detach(), *(line.clone() for line in lines)

    @staticmethod
    def backward(ctx, grad: Tensor, *lines: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # a gradient that is differentiated again
            grad = grad.clone()
        _, *places = _slices(grad)  # of the padding's gradient, a tensor that nobody else has
        for place, line in zip(places, lines, strict=True):
            place += line
        return grad


def _reflection(
    top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What reflection changes against replication: the outermost lines, top, bottom, left and right, from the two
    outermost lines on each side.

    Two lines beyond the border reflection shows the second value where replication shows the first. Rows are corrected
    along the reflected width, columns along the replicated height, so that the corners come out once.
    """
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
    return (
        F.conv2d(above, weight[:, :, :1]),
        F.conv2d(below, weight[:, :, -1:]),
        F.conv2d(before, weight[..., :1]),
        F.conv2d(behind, weight[..., -1:]),
    )


def _add_border(y: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add to ``y``, in place, its outermost lines."""
    y[:, :, :1] += top
    y[:, :, -1:] += bottom
    y[..., :1] += left
    y[..., -1:] += right
    return y


class _AddBorder(torch.autograd.Function):
    """`_add_border`, whose gradient needs no copy; autograd would copy the whole of it four times."""

    @staticmethod
    def forward(ctx, y: Tensor, *lines: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return _add_border(y, *lines)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, grad[:, :, :1], grad[:, :, -1:], grad[..., :1], grad[..., -1:]
