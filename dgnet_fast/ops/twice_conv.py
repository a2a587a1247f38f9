"""A convolution whose gradients are convolutions of the usual sizes at every order.

PyTorch forms the weight's part of a double backward as a convolution whose filter is the gradient of the result: for D's
gradient penalty 32 of them a step, each with a filter as large as a picture, which a GPU works off in a few thread blocks
(PyTorch's pull request 54840 measured 40 s for the sibling of that formula under cuDNN 8). Both gradients of a
convolution are linear in the gradient of its result and in weight or input, so theirs are convolutions and gradients of
convolutions again, with one of the three replaced by the cotangent: that is what stands here, at every order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.ops.input_alone import InputAlone, current, needed


class _How(NamedTuple):
    """Stride and zero padding along H and W."""

    stride: tuple[int, int]
    padding: tuple[int, int]


def twice_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """``F.conv2d(x, weight, bias, stride, padding)``, for a network whose input gradient is itself differentiated.

    Args:
        x: (B, C, H, W); weight: (O, C, h, w), any kernel; bias: (O,) or None; all of one dtype, or under autocast.
        stride, padding: along H and W; padding is with zeros.

    Returns:
        (B, O, H', W') as `F.conv2d` does, in autocast's dtype where that is on.

    Differentiable at any order, under the transforms of torch.func too; under torch.compile it is `F.conv2d`. A
    backward pass within `InputAlone.backward` leaves out the gradients of weight and bias. Raises as `F.conv2d` does.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    # Traced under torch.func.vjp, as D's compiled penalty is, `_Convolution` gave a penalty of 0.
    if torch.compiler.is_compiling():
        return F.conv2d(x, weight, bias, stride, padding)
    return _Convolution.apply(
        x, weight, bias, _How((stride[0], stride[1]), (padding[0], padding[1])), current()
    )


def _gradients(grad_y: Tensor, x: Tensor, weight: Tensor, how: _How, mask: list[bool]) -> Any:
    return torch.ops.aten.convolution_backward(
        grad_y, x, weight, [weight.shape[0]], how.stride, how.padding, (1, 1), False, (0, 0), 1, mask
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, how: _How, alone: InputAlone | None
    ) -> Tensor:
        return F.conv2d(x, weight, bias, how.stride, how.padding)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        x, weight, _, ctx.how, ctx.alone = inputs
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_y: Tensor | None):
        mask = needed(ctx.alone, ctx.needs_input_grad)
        if grad_y is None or not any(mask):
            return (None,) * 5
        return *_Gradients.apply(grad_y, *ctx.saved_tensors, ctx.how, mask), None, None


class _Gradients(torch.autograd.Function):
    """The gradients of x, weight and bias that ``mask`` asks for, None for the others."""

    @staticmethod
    def forward(grad_y: Tensor, x: Tensor, weight: Tensor, how: _How, mask: list[bool]):
        return tuple(_gradients(grad_y, x, weight, how, mask))

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        grad_y, x, weight, ctx.how, _ = inputs
        ctx.save_for_backward(grad_y, x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, to_x: Tensor | None, to_weight: Tensor | None, to_bias: Tensor | None):
        grad_y, x, weight = ctx.saved_tensors
        needs_grad_y, needs_x, needs_weight, *_ = ctx.needs_input_grad
        parts = []
        if needs_grad_y and to_x is not None:
            parts.append(_Convolution.apply(to_x, weight, None, ctx.how, None))
        if needs_grad_y and to_weight is not None:
            parts.append(_Convolution.apply(x, to_weight, None, ctx.how, None))
        if needs_grad_y and to_bias is not None:
            parts.append(to_bias.view(1, -1, 1, 1).expand_as(grad_y))
        of_x = of_weight = None
        if needs_x and to_weight is not None:
            of_x, *_ = _Gradients.apply(grad_y, x, to_weight, ctx.how, [True, False, False])
        if needs_weight and to_x is not None:
            _, of_weight, _ = _Gradients.apply(grad_y, to_x, weight, ctx.how, [False, True, False])
        return sum(parts[1:], parts[0]) if parts else None, of_x, of_weight, None, None
