"""act_pad: bias, residual, LeakyReLU and reflect padding in one pass, what stands between two convolutions without a norm.

    y = pad(act(x + bias + residual))

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
    check_residual,
    statistics_dtype,
)
from dgnet_fast.ops.bodies import Arguments, Body, addresses, cpp_body, layout, triton_body
from dgnet_fast.ops.define import define
from dgnet_fast.ops.input_alone import current, needed
from dgnet_fast.ops.layouts import dense_innermost, memory_format
from dgnet_fast.ops.padding import (
    check_padding,
    check_padding_is_int,
    empty_padded,
    fold_reflection,
    interior,
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
        x: Tensor,
        sides: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        negative_slope: float,
        padding: int,
    ) -> Tensor:
        """Returns y."""
        order, dtype = memory_format(x), x.dtype
        if bias is not None:
            x = x.to(statistics_dtype(x)) + bias.to(statistics_dtype(x)).view(-1, 1, 1)
        if residual is not None:
            x = x.to(statistics_dtype(x)) + residual
        if negative_slope != 1:
            x = (
                F.leaky_relu(x, negative_slope)
                if sides is None
                else _scaled(x, sides, negative_slope, padding)
            )
        return reflect_pad(x, padding).to(dtype).contiguous(memory_format=order)

    @staticmethod
    def backward(
        grad_y: Tensor,
        sides: Tensor | None,
        negative_slope: float,
        padding: int,
        grad_again: Tensor | None = None,
        bias_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns grad_x, which is the residual's too, and grad_bias in ``bias_dtype``, empty, (0,), for None.

        ``grad_again`` is a gradient of the picture within y.
        """
        grad = fold_reflection(grad_y.to(statistics_dtype(grad_y)), padding)
        if grad_again is not None:
            grad = grad + grad_again
        if sides is not None:
            grad = _scaled(grad, sides, negative_slope, padding)
        grad_bias = grad_y.new_empty(0) if bias_dtype is None else grad.sum((0, 2, 3)).to(bias_dtype)
        grad_x = grad.to(grad_y.dtype).contiguous(memory_format=memory_format(grad_y))
        return grad_x, grad_bias


def _scaled(x: Tensor, sides: Tensor, negative_slope: float, padding: int) -> Tensor:
    """Multiplies x by the slope of the branch that ``sides`` takes."""
    height, width = x.shape[2:]
    sides = sides[:, :, padding : padding + height, padding : padding + width]
    return torch.where(sides > 0, x, x * negative_slope)


def act_pad_reference(
    x: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    negative_slope: float | None = None,
    padding: int,
) -> Tensor:
    """`act_pad` in plain PyTorch: same arguments and result, any device."""
    slope = as_slope(negative_slope)
    _check(x, bias, residual, slope, padding)
    _check_work(bias, residual, negative_slope, padding)
    return reference.forward(x, None, bias, residual, slope, padding)


def act_pad(
    x: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    negative_slope: float | None = None,
    padding: int,
) -> Tensor:
    """pad(act(x + bias + residual)), as one op.

    Args:
        x: (B, C, H, W), none of them 0; float32, bfloat16, float16, or float64 (served by the reference).
        bias: (C,), of x's dtype or float32, added in float32; or None.
        residual: of x's shape and dtype, added in float32; or None. The picture within a padded y serves without a copy.
        negative_slope: of the LeakyReLU, at least 0, so that y tells the backward pass where x is above 0; None for no
            activation.
        padding: pixels of reflect padding on every side, as `F.pad` with mode reflect adds; at least 1, or 0 with a
            residual or with a bias and a negative_slope; smaller than H and W.

    Returns:
        (B, C, H + 2 padding, W + 2 padding) in x's dtype, in channels_last if x is dense in that order, else contiguous.
        Neither order is copied; an x that is dense in neither is.

    Autocast does not change the op: it runs in the dtype x has. Differentiable to any order, but not under the
    transforms of torch.func. Gradients of a pixel and its copies in the border are added in float32, and so is the gradient
    of the bias, before grad_x is rounded. A backward pass within `InputAlone.backward` leaves out the gradient of the bias.

    Raises:
        ValueError: shapes, dtypes, devices, slope or padding other than these; DGNET_FAST_IMPL forces a body that cannot serve.
    """
    check_device("act_pad", x)
    check_padding_is_int(padding)
    _check_work(bias, residual, negative_slope, padding)
    return _forward_op(x, None, bias, residual, as_slope(negative_slope), padding)


def act_pad_for_two(
    x: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    negative_slope: float | None = None,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """`act_pad`'s y and, as a view, the picture within, for a convolution that reads the one and a sum that reads the other:
    their gradients are added up by the backward pass of the op, and autograd makes no pass of its own. Padding at least 1.
    """
    check_device("act_pad", x)
    check_padding_is_int(padding)
    if padding == 0:
        raise ValueError("padding must be at least 1, got 0")
    return _ForTwo.apply(x, bias, residual, as_slope(negative_slope), padding)


def _check(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, negative_slope: float, padding: int
) -> None:
    check_pictures(x)
    if bias is not None:
        check_affine("bias", bias, x, "C")
    if residual is not None:
        check_residual(residual, x)
    check_padding(padding, x)
    if not negative_slope >= 0:
        raise ValueError(f"negative_slope must be at least 0, got {negative_slope}")


def _check_work(
    bias: Tensor | None, residual: Tensor | None, negative_slope: float | None, padding: int
) -> None:
    if padding == 0 and residual is None and (bias is None or negative_slope is None):
        raise ValueError(
            "padding must be at least 1, got 0, which is allowed with a residual or with a bias and a negative_slope"
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
    channels = 0 if a.bias_dtype is None else a.grad_y.shape[1]
    grad_bias = a.grad_y.new_empty(channels, dtype=a.bias_dtype)
    return {"grad_x": empty_padded(a.grad_y, -a.padding), "grad_bias": grad_bias}


def _prepare(a: Arguments) -> Tensor:
    _check(a.x, a.bias, a.residual, a.negative_slope, a.padding)
    _check_sides(a.sides, padded_shape(a.x, a.padding), a.x)
    a.x, a.sides = _in_one_order(a.x, a.sides)
    a.bias = None if a.bias is None else a.bias.contiguous()
    order = memory_format(a.x)
    if a.residual is not None and not dense_innermost(a.residual, order):
        a.residual = a.residual.contiguous(memory_format=order)
    return a.x


def _prepare_backward(a: Arguments) -> Tensor:
    _check_sides(a.sides, a.grad_y.shape, a.grad_y)
    a.grad_y, a.sides = _in_one_order(a.grad_y, a.sides)
    if a.grad_again is not None:
        a.grad_again = a.grad_again.contiguous(memory_format=memory_format(a.grad_y))
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
    needs_x, _, needs_bias, needs_residual, *_ = ctx.needs_input_grad
    return _gradients_of(ctx, grad_y, None, (needs_x, needs_bias, needs_residual))


def _gradients_of(
    ctx, grad_y: Tensor, grad_again: Tensor | None, needs: tuple[bool, bool, bool]
) -> dict[str, Tensor | None]:
    """Those of x, bias and residual, of what `_setup_context` has left in ``ctx``."""
    (sides,) = ctx.saved_tensors or (None,)
    needs_x, needs_bias, needs_residual = needs
    _, needs_bias, _ = needed(ctx.alone, (needs_x, needs_bias, False))
    grad_y = grad_y.contiguous(memory_format=ctx.order)
    dtype = ctx.bias_dtype if needs_bias else None
    grad_x, grad_bias = _backward_op(grad_y, sides, ctx.negative_slope, ctx.padding, grad_again, dtype)
    return {
        "x": grad_x if needs_x else None,
        "bias": grad_bias if needs_bias else None,
        "residual": grad_x if needs_residual else None,
    }


class _ForTwo(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, bias: Tensor | None, residual: Tensor | None, negative_slope: float, padding: int
    ) -> tuple[Tensor, Tensor]:
        y = _forward_op(x, None, bias, residual, negative_slope, padding)
        return y, y[:, :, padding:-padding, padding:-padding]

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        names = ("x", "bias", "residual", "negative_slope", "padding")
        ctx.set_materialize_grads(False)
        _setup_context(ctx, Arguments({"sides": None, **dict(zip(names, inputs, strict=True))}), output[0])

    @staticmethod
    def backward(ctx, grad_y: Tensor | None, grad_again: Tensor | None):
        if grad_y is None:
            assert grad_again is not None
            grad_y = grad_again.new_zeros(padded_shape(grad_again, ctx.padding))
        found = _gradients_of(ctx, grad_y, grad_again, ctx.needs_input_grad[:3])
        return *(found[name] for name in ("x", "bias", "residual")), None, None


def _setup_double(ctx, a: Arguments, output: tuple[Tensor, Tensor]) -> None:
    ctx.negative_slope, ctx.padding, ctx.order = a.negative_slope, a.padding, memory_format(output[0])
    ctx.shape, ctx.dtype = output[0].shape, output[0].dtype
    ctx.again, ctx.needs_bias = a.grad_again is not None, a.bias_dtype is not None
    ctx.set_materialize_grads(False)
    if a.sides is not None:
        ctx.save_for_backward(a.sides)


def _double_backward(ctx, to_x: Tensor | None, to_bias: Tensor | None) -> dict[str, Tensor | None]:
    """The gradients are linear in grad_y and grad_again; theirs are the same padding of the cotangent and the picture within
    it, the sides held fixed.
    """
    if ctx.needs_bias and to_bias is not None:
        spread = to_bias.to(ctx.dtype).view(1, -1, 1, 1).expand(ctx.shape)
        to_x = spread if to_x is None else to_x + spread
    if to_x is None:
        return {}
    (sides,) = ctx.saved_tensors or (None,)
    cotangent = to_x.contiguous(memory_format=ctx.order)
    padded = _forward_op(cotangent, sides, None, None, ctx.negative_slope, ctx.padding)
    return {"grad_y": padded, "grad_again": interior(padded, ctx.padding) if ctx.again else None}


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
    if a.residual is not None:  # these bodies take none
        a.x = (a.x + a.residual).contiguous(memory_format=memory_format(a.x))
    a.bias = as_statistics(a.bias, a.x)  # which the Triton body reads in its own dtype: a cast is a launch
    return {
        "layout": layout(a.x, a.padding),
        **addresses(a, "x", "sides", "bias", "y"),
        "slope": a.negative_slope,
    }


def _backward_call(a: Arguments) -> dict[str, Any]:
    if a.grad_again is not None:  # these bodies take one
        a.grad_y = a.grad_y.clone()
        interior(a.grad_y, a.padding).add_(a.grad_again)
    return {
        "layout": layout(a.grad_x, a.padding),
        **addresses(a, "grad_y", "sides", "grad_x"),
        "slope": a.negative_slope,
    }


def _fill_backward(a: Arguments) -> None:
    _cpp.backward(a)
    if a.bias_dtype is not None:
        a.grad_bias.copy_(a.grad_x.sum((0, 2, 3), dtype=torch.float32))


_cpp = cpp_body("act_pad", _forward_call, _backward_call)
cpp = Body(_cpp.forward, _fill_backward)
triton = triton_body("act_pad")
