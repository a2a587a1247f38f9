"""Nearest ×2 upsampling followed by a 5×5 convolution, computed on the small picture.

Nearest upsampling repeats every value, so of a 5×5 kernel's 25 taps on the large picture only 3×3 meet different values.
The output's four phases (even or odd row, even or odd column) are four 3×3 convolutions of the small picture with summed
taps: 9 multiplications where the plain form has 25. Zero and replicate padding carry over to the small picture. With
reflection on the large picture the outermost output line on each side sees one value that the phases do not; it is
corrected by a one-dimensional convolution along that line.

Any dtype and device, the result in x's memory order. Plain PyTorch around `conv3x3`, differentiable to any order by autograd,
but not under the transforms of torch.func with reflection, nor on CUDA with replication; with reflection on CUDA what is
convolved and the filters are ops, `upsample_border` and `upsample_weights`, that are differentiable once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.ops.conv3x3 import conv3x3
from dgnet_fast.ops.padding import replicate_pad
from dgnet_fast.ops.phases import joined
from dgnet_fast.ops.registry import FAST_DTYPES
from dgnet_fast.ops.upsample_border import reflected_lines, upsample_border
from dgnet_fast.ops.upsample_weights import KERNEL, outermost, phase_weights, upsample_weights


def upsample_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, pad_type: str = "reflect"
) -> Tensor:
    """The plain form: nearest ×2, pad by 2, convolve. Same arguments as `upsample_conv`."""
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    if pad_type == "zero":
        return F.conv2d(x, weight, bias, padding=2)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode=pad_type), weight, bias)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None, pad_type: str = "reflect") -> Tensor:
    """conv5×5(pad2(nearest×2(x))): x (B, C, H, W), weight (O, C, 5, 5), bias (O,) or None → (B, O, 2H, 2W).

    ``pad_type`` reflect, replicate or zero, as applied to the large picture. Equal to `upsample_conv_reference` up to
    rounding. Raises ValueError for another kernel size, channel mismatch or padding.
    """
    _check(x, weight, pad_type)
    small, lines = _phases_of(x, weight, pad_type)
    y = joined(small, bias)
    if lines is None:
        return y
    return _add_border(y, *lines) if torch.compiler.is_compiling() else _AddBorder.apply(y, *lines)


def upsample_conv_phases(x: Tensor, weight: Tensor, pad_type: str = "reflect") -> Tensor:
    """`upsample_conv` without bias, in phases (B, 4·O, H, W), see `phases`: for `layer_norm_act`, which reads them so."""
    _check(x, weight, pad_type)
    small, lines = _phases_of(x, weight, pad_type)
    return small if lines is None else _AddBorderToPhases.apply(small, *lines)


def in_one_pass(x: Tensor) -> bool:
    """Whether reflection takes `upsample_border` and `upsample_weights`: on CUDA, where every slice and copy is a launch."""
    return x.is_cuda and x.dtype in FAST_DTYPES and not torch.compiler.is_compiling()


def _phases_of(x: Tensor, weight: Tensor, pad_type: str) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """The phases of the padded convolution, and with reflection what is to be added to the outermost lines."""
    if pad_type == "zero":
        return conv3x3(x, phase_weights(weight), padding=1), None
    if pad_type == "replicate":
        return conv3x3(replicate_pad(x, 1), phase_weights(weight)), None
    if in_one_pass(x):
        padded, *lines = upsample_border(x)
        phases, *filters = upsample_weights(weight, x.dtype)
    else:
        # compiled, PyTorch's own slices and additions in place are part of the graph
        whole = torch.compiler.is_compiling()
        x, *outer = _slices(x) if whole else _Slices.apply(x)
        padded, lines = replicate_pad(x, 1), reflected_lines(*outer)
        phases, filters = phase_weights(weight), outermost(weight)
    small = conv3x3(padded, phases)
    return small, tuple(F.conv2d(line, one) for line, one in zip(lines, filters, strict=True))


def _check(x: Tensor, weight: Tensor, pad_type: str) -> None:
    if weight.ndim != 4 or weight.shape[2:] != (KERNEL, KERNEL):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; allowed: (O, C, {KERNEL}, {KERNEL})")
    if x.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (B, {weight.shape[1]}, H, W)")
    if pad_type not in ("reflect", "replicate", "zero"):
        raise ValueError(f"pad_type is {pad_type!r}; allowed: reflect, replicate, zero")
    if pad_type == "reflect" and min(x.shape[2:]) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; reflection needs H and W of at least 2")


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


def _add_border(y: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add to ``y``, in place, its outermost lines."""
    # not `y[...] += top`, which Python ends with a copy of the sum onto itself
    y[:, :, :1].add_(top)
    y[:, :, -1:].add_(bottom)
    y[..., :1].add_(left)
    y[..., -1:].add_(right)
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


def _places_of_lines(small: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outermost lines of a picture in phases: top and bottom (B, O, W, 2), left and right (B, O, H, 2), views."""
    phases = small.unflatten(1, (2, 2, -1))
    rows, columns = (
        (phases[:, 0, :, :, 0], phases[:, 1, :, :, -1]),
        (phases[:, :, 0, ..., 0], phases[:, :, 1, ..., -1]),
    )
    top, bottom, left, right = (line.permute(0, 2, 3, 1) for line in (*rows, *columns))
    return top, bottom, left, right


class _AddBorderToPhases(torch.autograd.Function):
    """`_AddBorder` to a picture in phases."""

    @staticmethod
    def forward(ctx, small: Tensor, *lines: Tensor) -> Tensor:
        ctx.mark_dirty(small)
        for place, line in zip(_places_of_lines(small), lines, strict=True):
            place += line.flatten(2).unflatten(2, (-1, 2))
        return small

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        # in channels_last, as the convolutions along the lines want them
        lines = (place.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2) for place in _places_of_lines(grad))
        top, bottom, left, right = lines
        return grad, top.unsqueeze(2), bottom.unsqueeze(2), left.unsqueeze(3), right.unsqueeze(3)
