"""act_pad: LeakyReLU and reflect padding in one pass, what stands between two convolutions without a norm.

    y = pad(act(x))

PyTorch's padding on CUDA (by its source: not measured) leaves channels_last, a copy before it and one after, and its
gradient is made by atomics, in another order each time; here results and gradients keep x's memory order and are the
same from run to run. Only y is kept for the backward pass, which the next convolution keeps as well.

The reference, the schema with its fake and its autograd, the public function; the bodies are in act_pad_bodies.py, who
serves what in registry.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import as_slope, check_device, check_pictures, statistics_dtype
from dgnet_fast.ops.launch import memory_format
from dgnet_fast.ops.padding import (
    check_padding,
    check_padding_is_int,
    empty_padded,
    fold_reflection,
    padded_shape,
    reflect_pad,
)


class reference:  # noqa: N801  (a namespace, named as DGNET_FAST_IMPL names it)
    """Plain PyTorch: what every body must compute.

    ``sides``, a padded picture, says in x's place which branch of the LeakyReLU an element takes; negative_slope 1 means
    no activation.
    """

    @staticmethod
    def forward(x: Tensor, sides: Tensor | None, negative_slope: float, padding: int) -> Tensor:
        """y"""
        if negative_slope != 1:
            x = (
                F.leaky_relu(x, negative_slope)
                if sides is None
                else _scaled(x, sides, negative_slope, padding)
            )
        return reflect_pad(x, padding).contiguous(memory_format=memory_format(x))

    @staticmethod
    def backward(grad_y: Tensor, sides: Tensor | None, negative_slope: float, padding: int) -> Tensor:
        """grad_x"""
        grad = fold_reflection(grad_y.to(statistics_dtype(grad_y)), padding)
        if sides is not None:
            grad = _scaled(grad, sides, negative_slope, padding)
        return grad.to(grad_y.dtype).contiguous(memory_format=memory_format(grad_y))


def _scaled(x: Tensor, sides: Tensor, negative_slope: float, padding: int) -> Tensor:
    """x by the slope of the branch that ``sides`` takes."""
    height, width = x.shape[2:]
    sides = sides[:, :, padding : padding + height, padding : padding + width]
    return torch.where(sides > 0, x, x * negative_slope)


def act_pad_reference(x: Tensor, *, negative_slope: float | None = None, padding: int) -> Tensor:
    """`act_pad` in plain PyTorch: same arguments and result, any device."""
    slope = as_slope(negative_slope)
    _check(x, slope, padding)
    return reference.forward(x, None, slope, padding)


def act_pad(x: Tensor, *, negative_slope: float | None = None, padding: int) -> Tensor:
    """pad(act(x)), as one op.

    Args:
        x: (B, C, H, W), none of them 0; float32, bfloat16, float16, or float64 (served by the reference).
        negative_slope: of the LeakyReLU, at least 0, so that y tells the backward pass where x is above 0; None for no
            activation.
        padding: pixels of reflect padding on every side, as `F.pad` with mode reflect adds; at least 1, smaller than H
            and W.

    Returns:
        (B, C, H + 2 padding, W + 2 padding) in x's dtype, in channels_last if x is dense in that order, else contiguous.
        Neither order is copied; an x that is dense in neither is.

    Autocast does not change the op: it runs in the dtype x has. Differentiable to any order, but not under the
    transforms of torch.func. Gradients of a pixel and its copies in the border are added in float32.

    Raises:
        ValueError: shapes, dtypes, slope or padding other than these; DGNET_FAST_IMPL forces a body that cannot serve.
    """
    check_device("act_pad", x)
    check_padding_is_int(padding)
    return _forward_op(x, None, as_slope(negative_slope), padding)


def _check(x: Tensor, negative_slope: float, padding: int) -> None:
    check_pictures(x)
    check_padding(padding, x)
    if padding == 0:
        raise ValueError(
            "padding must be at least 1, got 0; without padding use torch.nn.functional.leaky_relu"
        )
    if not negative_slope >= 0:
        raise ValueError(f"negative_slope must be at least 0, got {negative_slope}")


def _check_sides(sides: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    if sides is not None and (sides.shape != shape or sides.dtype != x.dtype or sides.device != x.device):
        raise ValueError(
            f"sides must have shape {tuple(shape)}, {x.dtype} and device {x.device}, "
            f"got {tuple(sides.shape)}, {sides.dtype} and {sides.device}"
        )


# ---- the op: schema, bodies, fake, autograd

_DEVICES = tuple(registry.TABLE["act_pad"])


@torch.library.custom_op("dgnet_fast::act_pad", mutates_args=(), device_types=_DEVICES)
def _forward_op(x: Tensor, sides: Tensor | None, negative_slope: float, padding: int) -> Tensor:
    _check(x, negative_slope, padding)
    _check_sides(sides, padded_shape(x, padding), x)
    body = registry.implementation("act_pad", x.device.type, x.dtype)
    return body.forward(*_in_one_order(x, sides), negative_slope, padding)


@torch.library.custom_op("dgnet_fast::act_pad_backward", mutates_args=(), device_types=_DEVICES)
def _backward_op(grad_y: Tensor, sides: Tensor | None, negative_slope: float, padding: int) -> Tensor:
    _check_sides(sides, grad_y.shape, grad_y)
    body = registry.implementation("act_pad", grad_y.device.type, grad_y.dtype)
    return body.backward(*_in_one_order(grad_y, sides), negative_slope, padding)


def _in_one_order(x: Tensor, sides: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both dense, in the order of ``sides`` where there are some."""
    order = memory_format(x if sides is None else sides)
    return x.contiguous(memory_format=order), None if sides is None else sides.contiguous(memory_format=order)


@_forward_op.register_fake
def _(x, sides, negative_slope, padding):
    _check(x, negative_slope, padding)
    _check_sides(sides, padded_shape(x, padding), x)
    return empty_padded(_in_one_order(x, sides)[0], padding)


@_backward_op.register_fake
def _(grad_y, sides, negative_slope, padding):
    _check_sides(sides, grad_y.shape, grad_y)
    return empty_padded(_in_one_order(grad_y, sides)[0], -padding)


def _setup_context(ctx, inputs, output) -> None:
    _, sides, ctx.negative_slope, ctx.padding = inputs
    ctx.order = memory_format(output)
    if ctx.negative_slope != 1:
        ctx.save_for_backward(output if sides is None else sides)


def _backward(ctx, grad_y):
    (sides,) = ctx.saved_tensors or (None,)
    grad_y = grad_y.contiguous(memory_format=ctx.order)
    return _backward_op(grad_y, sides, ctx.negative_slope, ctx.padding), None, None, None


def _setup_backward_context(ctx, inputs, output) -> None:
    _, sides, ctx.negative_slope, ctx.padding = inputs
    ctx.order = memory_format(output)
    if sides is not None:
        ctx.save_for_backward(sides)


def _double_backward(ctx, cotangent):
    """The gradient is linear in grad_y; its own is the same padding of the cotangent, the sides held fixed."""
    (sides,) = ctx.saved_tensors or (None,)
    cotangent = cotangent.contiguous(memory_format=ctx.order)
    return _forward_op(cotangent, sides, ctx.negative_slope, ctx.padding), None, None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
_backward_op.register_autograd(_double_backward, setup_context=_setup_backward_context)
