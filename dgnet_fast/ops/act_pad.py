"""act_pad: bias, LeakyReLU and reflect padding in one pass, what stands between two convolutions without a norm.

    y = pad(act(x + bias))

PyTorch's padding on CUDA (by its source: not measured) leaves channels_last, a copy before it and one after, and its
gradient is made by atomics, in another order each time; here results and gradients keep x's memory order and are the
same from run to run. Only y is kept for the backward pass, which the next convolution keeps as well.

The reference, the public function, what the op allocates and checks, its autograd, and the calls into its bodies;
registry.py says who serves what.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops.arguments import (
    as_slope,
    as_statistics,
    check_affine,
    check_device,
    check_pictures,
    statistics_dtype,
)
from dgnet_fast.ops.bodies import Arguments, addresses, cpp_body, layout, triton_body
from dgnet_fast.ops.define import define
from dgnet_fast.ops.input_alone import current, needed
from dgnet_fast.ops.layouts import memory_format
from dgnet_fast.ops.padding import (
    check_padding,
    check_padding_is_int,
    empty_padded,
    fold_reflection,
    padded_shape,
    reflect_pad,
)


class reference:
    """Plain PyTorch: what every body must compute.

    ``sides``, a padded picture, says in x's place which branch of the LeakyReLU an element takes; negative_slope 1 means
    no activation.
    """

    @staticmethod
    def forward(
        x: Tensor, sides: Tensor | None, bias: Tensor | None, negative_slope: float, padding: int
    ) -> Tensor:
        """Returns y."""
        order, dtype = memory_format(x), x.dtype
        if bias is not None:
            x = x.to(statistics_dtype(x)) + bias.to(statistics_dtype(x)).view(-1, 1, 1)
        if negative_slope != 1:
            x = (
                F.leaky_relu(x, negative_slope)
                if sides is None
                else _scaled(x, sides, negative_slope, padding)
            )
        return reflect_pad(x, padding).to(dtype).contiguous(memory_format=order)

    @staticmethod
    def backward(grad_y: Tensor, sides: Tensor | None, negative_slope: float, padding: int) -> Tensor:
        """Returns grad_x."""
        grad = fold_reflection(grad_y.to(statistics_dtype(grad_y)), padding)
        if sides is not None:
            grad = _scaled(grad, sides, negative_slope, padding)
        return grad.to(grad_y.dtype).contiguous(memory_format=memory_format(grad_y))


def _scaled(x: Tensor, sides: Tensor, negative_slope: float, padding: int) -> Tensor:
    """Multiplies x by the slope of the branch that ``sides`` takes."""
    height, width = x.shape[2:]
    sides = sides[:, :, padding : padding + height, padding : padding + width]
    return torch.where(sides > 0, x, x * negative_slope)


def act_pad_reference(
    x: Tensor, bias: Tensor | None = None, *, negative_slope: float | None = None, padding: int
) -> Tensor:
    """`act_pad` in plain PyTorch: same arguments and result, any device."""
    slope = as_slope(negative_slope)
    _check(x, bias, slope, padding)
    _check_work(bias, negative_slope, padding)
    return reference.forward(x, None, bias, slope, padding)


def act_pad(
    x: Tensor, bias: Tensor | None = None, *, negative_slope: float | None = None, padding: int
) -> Tensor:
    """pad(act(x + bias)), as one op.

    Args:
        x: (B, C, H, W), none of them 0; float32, bfloat16, float16, or float64 (served by the reference).
        bias: (C,), of x's dtype or float32, added in float32; or None.
        negative_slope: of the LeakyReLU, at least 0, so that y tells the backward pass where x is above 0; None for no
            activation.
        padding: pixels of reflect padding on every side, as `F.pad` with mode reflect adds; at least 1, or 0 with a
            bias and a negative_slope; smaller than H and W.

    Returns:
        (B, C, H + 2 padding, W + 2 padding) in x's dtype, in channels_last if x is dense in that order, else contiguous.
        Neither order is copied; an x that is dense in neither is.

    Autocast does not change the op: it runs in the dtype x has. Differentiable to any order, but not under the
    transforms of torch.func. Gradients of a pixel and its copies in the border are added in float32. A backward pass
    within `InputAlone.backward` leaves out the gradient of the bias.

    Raises:
        ValueError: shapes, dtypes, devices, slope or padding other than these; DGNET_FAST_IMPL forces a body that cannot serve.
    """
    check_device("act_pad", x)
    check_padding_is_int(padding)
    _check_work(bias, negative_slope, padding)
    return _forward_op(x, None, bias, as_slope(negative_slope), padding)


def _check(x: Tensor, bias: Tensor | None, negative_slope: float, padding: int) -> None:
    check_pictures(x)
    if bias is not None:
        check_affine("bias", bias, x, "C")
    check_padding(padding, x)
    if not negative_slope >= 0:
        raise ValueError(f"negative_slope must be at least 0, got {negative_slope}")


def _check_work(bias: Tensor | None, negative_slope: float | None, padding: int) -> None:
    if padding == 0 and (bias is None or negative_slope is None):
        raise ValueError(
            "padding must be at least 1, got 0, which is allowed with a bias and a negative_slope"
        )


def _check_sides(sides: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    if sides is not None and (sides.shape != shape or sides.dtype != x.dtype or sides.device != x.device):
        raise ValueError(
            f"sides must have shape {tuple(shape)}, {x.dtype} and device {x.device}, "
            f"got {tuple(sides.shape)}, {sides.dtype} and {sides.device}"
        )


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    return {"y": empty_padded(a.x, a.padding)}


def _gradients(a: Arguments) -> dict[str, Tensor]:
    return {"grad_x": empty_padded(a.grad_y, -a.padding)}


def _prepare(a: Arguments) -> Tensor:
    _check(a.x, a.bias, a.negative_slope, a.padding)
    _check_sides(a.sides, padded_shape(a.x, a.padding), a.x)
    a.x, a.sides = _in_one_order(a.x, a.sides)
    a.bias = None if a.bias is None else a.bias.contiguous()
    return a.x


def _prepare_backward(a: Arguments) -> Tensor:
    _check_sides(a.sides, a.grad_y.shape, a.grad_y)
    a.grad_y, a.sides = _in_one_order(a.grad_y, a.sides)
    return a.grad_y


def _in_one_order(x: Tensor, sides: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Makes both dense, in the order of ``sides`` where there are some."""
    order = memory_format(x if sides is None else sides)
    return x.contiguous(memory_format=order), None if sides is None else sides.contiguous(memory_format=order)


def _setup_context(ctx, a: Arguments, output: Tensor) -> None:
    ctx.negative_slope, ctx.padding, ctx.order = a.negative_slope, a.padding, memory_format(output)
    ctx.alone, ctx.bias_dtype = current(), None if a.bias is None else a.bias.dtype
    if a.negative_slope != 1:
        ctx.save_for_backward(output if a.sides is None else a.sides)


def _backward(ctx, grad_y: Tensor) -> dict[str, Tensor | None]:
    (sides,) = ctx.saved_tensors or (None,)
    needs_x, _, needs_bias, *_ = ctx.needs_input_grad
    _, needs_bias, _ = needed(ctx.alone, (needs_x, needs_bias, False))
    grad_y = grad_y.contiguous(memory_format=ctx.order)
    grad_x = _backward_op(grad_y, sides, ctx.negative_slope, ctx.padding)
    # a kernel of its own, as PyTorch's convolutions make theirs
    grad_bias = grad_x.sum((0, 2, 3), dtype=ctx.bias_dtype) if needs_bias else None
    return {"x": grad_x if needs_x else None, "bias": grad_bias}


def _setup_double(ctx, a: Arguments, output: Tensor) -> None:
    ctx.negative_slope, ctx.padding, ctx.order = a.negative_slope, a.padding, memory_format(output)
    if a.sides is not None:
        ctx.save_for_backward(a.sides)


def _double_backward(ctx, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradient is linear in grad_y; its own is the same padding of the cotangent, the sides held fixed."""
    (sides,) = ctx.saved_tensors or (None,)
    cotangent = cotangent.contiguous(memory_format=ctx.order)
    return {"grad_y": _forward_op(cotangent, sides, None, ctx.negative_slope, ctx.padding)}


_forward_op, _backward_op = define(
    "act_pad",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
    setup_double=_setup_double,
    double_backward=_double_backward,
)

# ---- its bodies


def _forward_call(a: Arguments) -> dict[str, Any]:
    a.bias = as_statistics(a.bias, a.x)  # which the Triton body reads in its own dtype: a cast is a launch
    return {
        "layout": layout(a.x, a.padding),
        **addresses(a, "x", "sides", "bias", "y"),
        "slope": a.negative_slope,
    }


def _backward_call(a: Arguments) -> dict[str, Any]:
    return {
        "layout": layout(a.grad_x, a.padding),
        **addresses(a, "grad_y", "sides", "grad_x"),
        "slope": a.negative_slope,
    }


cpp = cpp_body("act_pad", _forward_call, _backward_call)
triton = triton_body("act_pad")
