"""conv3x3_act: reflect padding, a 3×3 convolution, bias and LeakyReLU in one pass, a layer of D and of G's last two.

    y = act(conv3x3(pad1(x), weight) + bias)

On a GPU those layers are bound by memory: in a chain of them cuDNN's convolutions with `act_pad` between write and read each
value twice, this op once. On an H100 its forward pass is 1.6 times as fast as theirs, and with its gradients it takes twice their time or
more (benchmarks/results/nvidia-h100-2026-11-26.md), so that it is chosen by name alone (DGNET_FAST_IMPL=triton) and no network
calls it; `pytest benchmarks/ --op conv3x3_act` measures both.

No norm is part of it: in the paper's configuration none of these layers has one behind it, and of one before it
(`layer_norm_act` before the first of G's two) it would want the backward pass as well.

The reference, the public function, what the op allocates and checks, its autograd, and its bodies; registry.py says who
serves what.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops.arguments import as_slope, check_affine, check_device, check_pictures, statistics_dtype
from dgnet_fast.ops.bodies import Arguments, triton_body
from dgnet_fast.ops.define import define
from dgnet_fast.ops.layouts import memory_format
from dgnet_fast.ops.padding import check_padding, fold_reflection, reflect_pad

Three = tuple[Tensor, Tensor, Tensor]


class reference:
    """Plain PyTorch: what every body must compute. negative_slope 1 means no activation."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float) -> Tensor:
        """Returns y."""
        bias = None if bias is None else bias.to(x.dtype)
        y = F.conv2d(reflect_pad(x, 1), weight, bias)
        y = y if negative_slope == 1 else F.leaky_relu(y, negative_slope)
        return y.contiguous(memory_format=memory_format(x))

    @staticmethod
    def backward(
        grad_y: Tensor, y: Tensor, x: Tensor, weight: Tensor, negative_slope: float, needed: list[bool]
    ) -> Three:
        """Returns the gradients of x, weight and bias (float32, float64 of float64); what is not needed is empty, (0,)."""
        grad = torch.where(y > 0, grad_y, grad_y * negative_slope)
        pair = [1, 1]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, reflect_pad(x, 1), weight, None, pair, [0, 0], pair, False, [0, 0], 1, [*needed[:2], False]
        )
        empty = x.new_empty(0)
        if grad_x is not None:
            grad_x = fold_reflection(grad_x, 1).contiguous(memory_format=memory_format(x))
        if grad_weight is not None:
            grad_weight = torch.empty_like(weight).copy_(grad_weight)
        wide = statistics_dtype(x)
        grad_bias = grad.sum((0, 2, 3), dtype=wide) if needed[2] else grad_y.new_empty(0, dtype=wide)
        return (
            empty if grad_x is None else grad_x,
            empty.clone() if grad_weight is None else grad_weight,
            grad_bias,
        )


aten = reference


def conv3x3_act_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, negative_slope: float | None = None
) -> Tensor:
    """`conv3x3_act` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    slope = as_slope(negative_slope)
    _check(x, weight, bias, slope)
    return reference.forward(x, weight, bias, slope)


def conv3x3_act(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, negative_slope: float | None = None
) -> Tensor:
    """act(conv3x3(pad1(x), weight) + bias), as one op.

    Args:
        x: (B, C, H, W), H and W at least 2; float32, bfloat16, float16, or float64 (served by the reference).
        weight: (O, C, 3, 3) of x's dtype and device.
        bias: (O,), of x's dtype or float32; or None.
        negative_slope: of the LeakyReLU, at least 0; None for no activation.

    Returns:
        (B, O, H, W) in x's dtype and memory order. The Triton body works in channels_last and copies what comes otherwise.

    Products are added up in float32, those of float32 in TF32 where cuDNN's may be
    (``torch.backends.cudnn.allow_tf32``). Autocast does not change the op. Gradients flow once: double backward raises
    RuntimeError.

    Raises:
        ValueError: shapes, dtypes, devices or slope other than these; DGNET_FAST_IMPL forces a body that cannot serve.
    """
    check_device("conv3x3_act", x)
    return _forward_op(x, weight, bias, as_slope(negative_slope))


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float) -> None:
    check_pictures(x)
    check_padding(1, x)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3) or len(weight) == 0:
        raise ValueError(f"weight must have shape (O, {x.shape[1]}, 3, 3), got {tuple(weight.shape)}")
    if weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(
            f"weight must have x's dtype {x.dtype} and device {x.device}, got {weight.dtype} and {weight.device}"
        )
    if bias is not None:
        check_affine("bias", bias, weight.transpose(0, 1), "C")
    if not negative_slope >= 0:
        raise ValueError(f"negative_slope must be at least 0, got {negative_slope}")


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    shape = (a.x.shape[0], a.weight.shape[0], *a.x.shape[2:])
    order = memory_format(a.x)
    return {"y": torch.empty(shape, dtype=a.x.dtype, device=a.x.device, memory_format=order)}


def _gradients(a: Arguments) -> dict[str, Tensor]:
    needs_x, needs_weight, needs_bias = a.needed
    return {
        "grad_x": torch.empty_like(a.x) if needs_x else a.x.new_empty(0),
        "grad_weight": torch.empty_like(a.weight) if needs_weight else a.x.new_empty(0),
        "grad_bias": a.x.new_empty(a.weight.shape[0] if needs_bias else 0, dtype=statistics_dtype(a.x)),
    }


def _prepare(a: Arguments) -> Tensor:
    _check(a.x, a.weight, a.bias, a.negative_slope)
    _in_one_order(a, "x")
    a.bias = None if a.bias is None else a.bias.contiguous()
    return a.x


def _prepare_backward(a: Arguments) -> Tensor:
    _in_one_order(a, "x", "y", "grad_y")
    return a.x


def _in_one_order(a: Arguments, *names: str) -> None:
    """Makes the tensors of those names, and the weight, dense in the order of x."""
    order = memory_format(a.x)
    for name in (*names, "weight"):
        setattr(a, name, getattr(a, name).contiguous(memory_format=order))


def _setup_context(ctx, a: Arguments, output: Tensor) -> None:
    ctx.save_for_backward(output, a.x, a.weight)
    ctx.negative_slope, ctx.bias_dtype = a.negative_slope, None if a.bias is None else a.bias.dtype


def _backward(ctx, grad_y: Tensor) -> dict[str, Tensor | None]:
    y, x, weight = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:3])
    grad_x, grad_weight, grad_bias = _backward_op(grad_y, y, x, weight, ctx.negative_slope, needed)
    return {
        "x": grad_x if needed[0] else None,
        "weight": grad_weight if needed[1] else None,
        "bias": grad_bias.to(ctx.bias_dtype) if needed[2] else None,
    }


_forward_op, _backward_op = define(
    "conv3x3_act",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
)

triton = triton_body("conv3x3_act")
