"""batch_norm_act: BatchNorm by groups of samples with ReLU and a residual, in one pass.

    y = relu((x - mean) / sqrt(var + eps) * weight + bias + residual)

The batch is G equal consecutive groups; mean and biased variance are those of a channel within a group, over its
samples and pixels. One call is what E_a's passes over x_a, x_b, the positives, … are as separate batches.

The reference, the public function, what the op allocates and checks, its autograd, and the calls into its bodies;
registry.py says who serves what.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgnet_fast.ops.arguments import (
    as_statistics,
    check_affine,
    check_device,
    check_pictures,
    check_residual,
    new_statistics,
    statistics_dtype,
)
from dgnet_fast.ops.bodies import Arguments, addresses, cpp_body, cuda_body, layout, triton_body
from dgnet_fast.ops.define import define
from dgnet_fast.ops.layouts import memory_format

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Turns (B, C, H, W) into (G, B/G, C, H, W) in the statistics' dtype."""
    return x.to(statistics_dtype(x)).unflatten(0, (groups, -1))


def _per_group(value: Tensor) -> Tensor:
    """Turns (G, C) into (G, 1, C, 1, 1)."""
    return value[:, None, :, None, None]


class reference:
    """Plain PyTorch: what every body must compute. mean and var are (G, C), gradients of weight and bias (C,):
    float32, float64 for float64 x.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
    ) -> Three:
        """Returns (y, mean, var)."""
        values = _grouped(x, groups)
        var, mean = torch.var_mean(values, dim=(1, 3, 4), correction=0)
        scale = (var + eps).rsqrt() * weight
        z = ((values - _per_group(mean)) * _per_group(scale)).flatten(0, 1) + bias[:, None, None]
        if residual is not None:
            z = z + residual
        y = z.relu() if relu else z
        return y.to(x.dtype).contiguous(memory_format=memory_format(x)), mean, var

    @staticmethod
    def backward(
        grad_y: Tensor,
        y: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        var: Tensor,
        groups: int,
        relu: bool,
        eps: float,
        needs_residual: bool,
        bias: Tensor | None = None,
        grad_again: Tensor | None = None,
    ) -> Four:
        """Returns (grad_x, grad_weight, grad_bias, grad_residual); the last is empty, (0,), unless needed.

        ``grad_again`` is added to grad_y. With ``bias``, which is given where there was no residual, a body may find the
        ReLU's side from x instead of y.
        """
        grad_y = grad_y if grad_again is None else grad_y + grad_again
        grad_z = torch.where(y <= 0, 0, grad_y) if relu else grad_y
        grad = _grouped(grad_z, groups)
        rstd = (var + eps).rsqrt()
        normal = (_grouped(x, groups) - _per_group(mean)) * _per_group(rstd)
        product = (grad * normal).sum(dim=(1, 3, 4))
        total = grad.sum(dim=(1, 3, 4))
        count = x.numel() // (groups * x.shape[1])
        grad_x = grad - _per_group(total / count) - normal * _per_group(product / count)
        grad_x = (grad_x * _per_group(rstd * weight)).flatten(0, 1).to(x.dtype)
        order = memory_format(x)
        passed = grad_z.contiguous(memory_format=order).clone() if needs_residual else x.new_empty(0)
        return grad_x.contiguous(memory_format=order), product.sum(0), total.sum(0), passed


def batch_norm_act_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    groups: int = 1,
    relu: bool = True,
    eps: float = 1e-5,
) -> Three:
    """`batch_norm_act` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    _check(x, weight, bias, residual, groups)
    weight, bias = as_statistics(weight, x), as_statistics(bias, x)
    return reference.forward(x, weight, bias, residual, groups, relu, eps)


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    groups: int = 1,
    relu: bool = True,
    eps: float = 1e-5,
) -> Three:
    """relu((x - mean) / sqrt(var + eps) * weight + bias + residual), statistics per group, as one op.

    Args:
        x: (B, C, H, W), none of them 0; float32, bfloat16, float16, or float64 (served by the reference).
        weight, bias: (C,), of x's dtype or float32.
        residual: of x's shape and dtype, added before the ReLU; or None.
        groups: number of equal consecutive slices of the batch, each with statistics of its own.
        relu: False for no activation.
        eps: added to the biased variance.

    Returns:
        y (B, C, H, W) in x's dtype, in channels_last if x is dense in that order, else contiguous; mean and
        biased variance (groups, C), float32 (float64 for float64), from which the caller updates its running
        statistics. They carry no gradient.

    Statistics are float32; a mean far above the deviation costs them nothing. Gradients flow to x, weight, bias
    and residual, once: double backward raises RuntimeError; use `batch_norm_act_reference` where second
    derivatives are needed.

    Raises:
        ValueError: shapes, dtypes, devices or groups other than these; DGNET_FAST_IMPL forces a body that
            cannot serve.
    """
    check_device("batch_norm_act", x)
    return _forward_op(x, weight, bias, residual, groups, relu, eps)


def batch_norm_act_for_two(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    groups: int = 1,
    relu: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`batch_norm_act` with its y twice, for two readers, and then mean and variance.

    The gradients of the two are added within the backward pass; of one tensor that both read autograd would add them in a
    pass of its own. Neither may be changed in place. Compiled it is `batch_norm_act`, with one y.
    """
    check_device("batch_norm_act", x)
    if torch.compiler.is_compiling():
        y, mean, var = _forward_op(x, weight, bias, residual, groups, relu, eps)
        return y, y, mean, var
    return _ForTwo.apply(x, weight, bias, residual, groups, relu, eps)


def _check(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int) -> None:
    check_pictures(x)
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"groups must be at least 1 and divide the batch of {x.shape[0]}, got {groups}")
    check_affine("weight", weight, x, "C")
    check_affine("bias", bias, x, "C")
    if residual is not None:
        check_residual(residual, x)


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    mean, var = new_statistics(a.x, a.groups, a.x.shape[1])
    return {"y": torch.empty_like(a.x), "mean": mean, "var": var}


def _gradients(a: Arguments) -> dict[str, Tensor]:
    grad_weight, grad_bias = new_statistics(a.x, a.x.shape[1])
    return {
        "grad_x": torch.empty_like(a.x),
        "grad_weight": grad_weight,
        "grad_bias": grad_bias,
        "grad_residual": torch.empty_like(a.x) if a.needs_residual else a.x.new_empty(0),
    }


def _prepare(a: Arguments) -> Tensor:
    _check(a.x, a.weight, a.bias, a.residual, a.groups)
    order = memory_format(a.x)
    a.x = a.x.contiguous(memory_format=order)
    if a.residual is not None:
        a.residual = a.residual.contiguous(memory_format=order)
    a.weight, a.bias = as_statistics(a.weight, a.x), as_statistics(a.bias, a.x)
    return a.x


def _prepare_backward(a: Arguments) -> Tensor:
    order = memory_format(a.x)
    a.x, a.grad_y = a.x.contiguous(memory_format=order), a.grad_y.contiguous(memory_format=order)
    if a.grad_again is not None:
        a.grad_again = a.grad_again.contiguous(memory_format=order)
    a.weight, a.bias = as_statistics(a.weight, a.x), as_statistics(a.bias, a.x)
    return a.x


def _setup_context(ctx, a: Arguments, output) -> None:
    y, mean, var = output
    ctx.set_materialize_grads(False)  # no zeros for the statistics
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(y, a.x, a.weight, a.bias, mean, var)
    ctx.groups, ctx.relu, ctx.eps, ctx.has_residual = a.groups, a.relu, a.eps, a.residual is not None


def _backward(ctx, grad_y, _grad_mean, _grad_var, grad_again=None) -> dict[str, Tensor | None]:
    if grad_y is None:
        return {}
    y, x, weight, bias, mean, var = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual, *_ = ctx.needs_input_grad
    shift = None if ctx.has_residual else bias
    grad_x, grad_weight, grad_bias, grad_residual = _backward_op(
        grad_y, y, x, weight, mean, var, ctx.groups, ctx.relu, ctx.eps, needs_residual, shift, grad_again
    )
    return {
        "x": grad_x if needs_x else None,
        "weight": grad_weight.to(weight.dtype) if needs_weight else None,
        "bias": grad_bias.to(bias.dtype) if needs_bias else None,
        "residual": grad_residual if needs_residual else None,
    }


class _ForTwo(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, mean, var = _forward_op(x, weight, bias, residual, groups, relu, eps)
        return y, y.view_as(y), mean, var

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        names = ("x", "weight", "bias", "residual", "groups", "relu", "eps")
        y, _, mean, var = output
        _setup_context(ctx, Arguments(dict(zip(names, inputs, strict=True))), (y, mean, var))

    @staticmethod
    def backward(ctx, grad_y: Tensor | None, grad_again: Tensor | None, *_statistics):
        if grad_y is None:
            grad_y, grad_again = grad_again, None
        found = _backward(ctx, grad_y, None, None, grad_again)
        return *(found.get(name) for name in ("x", "weight", "bias", "residual")), None, None, None


_forward_op, _backward_op = define(
    "batch_norm_act",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
)

# ---- its bodies


def _forward_call(a: Arguments) -> dict[str, Any]:
    return {
        "layout": layout(a.x, 0),
        "groups": a.groups,
        **addresses(a, "x", "weight", "bias", "residual", "y", "mean", "var"),
        "relu": a.relu,
        "eps": a.eps,
    }


def _backward_call(a: Arguments) -> dict[str, Any]:
    if a.grad_again is not None:  # these bodies take one
        a.grad_y = a.grad_y + a.grad_again
    return {
        "layout": layout(a.x, 0),
        "groups": a.groups,
        **addresses(a, "grad_y", "y", "x", "weight", "mean", "var"),
        **addresses(a, "grad_x", "grad_weight", "grad_bias", "grad_residual"),
        "relu": a.relu,
        "eps": a.eps,
    }


cpp = cpp_body("batch_norm_act", _forward_call, _backward_call)
#: Bytes from and to memory are those of kernels/batch_norm_act.py.
cuda = cuda_body("batch_norm_act", _forward_call, _backward_call, workspace=("layout", "groups"))
triton = triton_body("batch_norm_act")
