"""Nearest ×2 upsampling followed by a 5×5 convolution, computed on the small picture.

Nearest upsampling repeats every value, so of a 5×5 kernel's 25 taps on the large picture only 3×3 meet different values.
The output's four phases (even or odd row, even or odd column) are four 3×3 convolutions of the small picture with summed
taps: 9 multiplications where the plain form has 25. Zero and replicate padding carry over to the small picture. With
reflection on the large picture the outermost output line on each side sees one value that the phases do not; it is
corrected by a one-dimensional convolution along that line.

Plain PyTorch around `conv3x3`: any dtype and device, differentiable to any order by autograd, but not with reflection
under the transforms of torch.func.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.ops.conv3x3 import conv3x3
from dgnet_fast.ops.padding import replicate_pad

KERNEL = 5

# Row p holds, for output phase p, which of the three small-picture taps each of the five taps falls on.
_PHASE_TAPS = ((0, 0, 1, 1, 2), (0, 1, 1, 2, 2))


def upsample_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, pad_type: str = "reflect"
) -> Tensor:
    """The plain form: nearest ×2, pad by 2, convolve. Same arguments as `upsample_conv`."""
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    if pad_type == "zero":
        return F.conv2d(x, weight, bias, padding=2)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode=pad_type), weight, bias)


def phase_weights(weight: Tensor) -> Tensor:
    """(O, C, 5, 5) → (4·O, C, 3, 3): channel 4·o + 2·p + q serves output rows of phase p and columns of phase q."""
    taps = torch.zeros(2, 3, KERNEL, dtype=weight.dtype, device=weight.device)
    for phase, places in enumerate(_PHASE_TAPS):
        for tap, place in enumerate(places):
            taps[phase, place, tap] = 1
    return torch.einsum("pru,qsv,ocuv->opqcrs", taps, taps, weight).reshape(-1, weight.shape[1], 3, 3)


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
    phases = None if bias is None else bias.repeat_interleave(4)
    if pad_type == "zero":
        small = conv3x3(x, phase_weights(weight), phases, padding=1)
    else:
        small = conv3x3(replicate_pad(x, 1), phase_weights(weight), phases)
    y = F.pixel_shuffle(small, 2)
    if pad_type != "reflect":
        return y
    lines = _reflection(x, weight)
    # compiled, PyTorch's own in-place additions are part of the graph; as they are, each of the four would have
    # autograd copy the whole gradient
    return _add_border(y, *lines) if torch.compiler.is_compiling() else _AddBorder.apply(y, *lines)


def _reflection(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What reflection changes against replication: the outermost lines, top, bottom, left and right.

    Two lines beyond the border reflection shows the second value where replication shows the first. Rows are corrected
    along the reflected width, columns along the replicated height, so that the corners come out once.
    """
    rows = torch.cat([x[:, :, 1:2] - x[:, :, :1], x[:, :, -2:-1] - x[:, :, -1:]])  # top, then bottom
    columns = torch.cat([x[..., 1:2] - x[..., :1], x[..., -2:-1] - x[..., -1:]])
    rows, columns = rows.repeat_interleave(2, dim=3), columns.repeat_interleave(2, dim=2)
    # not F.pad: Inductor expects the gradient of a single column in another memory order than it comes (PyTorch 2.13)
    rows = torch.cat([rows[..., 2:3], rows[..., 1:2], rows, rows[..., -2:-1], rows[..., -3:-2]], dim=3)
    first, last = columns[:, :, :1], columns[:, :, -1:]
    columns = torch.cat([first, first, columns, last, last], dim=2)
    # not chunk, which an exported program with a dynamic batch cannot follow
    top, bottom = rows.unflatten(0, (2, -1))
    left, right = columns.unflatten(0, (2, -1))
    return (
        F.conv2d(top, weight[:, :, :1]),
        F.conv2d(bottom, weight[:, :, -1:]),
        F.conv2d(left, weight[..., :1]),
        F.conv2d(right, weight[..., -1:]),
    )


def _add_border(y: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add to ``y``, in place, its outermost lines."""
    y[:, :, :1] += top
    y[:, :, -1:] += bottom
    y[..., :1] += left
    y[..., -1:] += right
    return y


class _AddBorder(torch.autograd.Function):
    """`_add_border`, whose gradient needs no copy."""

    @staticmethod
    def forward(ctx, y: Tensor, *lines: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return _add_border(y, *lines)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, grad[:, :, :1], grad[:, :, -1:], grad[..., :1], grad[..., -1:]
