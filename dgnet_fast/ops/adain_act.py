"""adain_act: instance normalisation, adaptive or plain, with LeakyReLU, a residual and padding, in one pass.

    y = pad(act(scale * (x - mean) / sqrt(var + eps) + shift) + residual)

With scale and shift it is the adaptive instance normalisation of DG-Net's decoder (DG-Net sec. 3.1; AdaIN:
Huang and Belongie 2017, eq. 8), without them the InstanceNorm of its structure encoder.

This module is the pattern of an op: the reference, the schema with its fake and its autograd, the public
function. The bodies are in adain_act_bodies.py, who serves what in registry.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import (
    as_slope,
    as_statistics,
    check_affine,
    check_device,
    check_pictures,
    check_residual,
    new_statistics,
    once_differentiable,
    statistics_dtype,
)
from dgnet_fast.ops.launch import dense_innermost, memory_format
from dgnet_fast.ops.padding import (
    check_padding,
    check_padding_is_int,
    empty_padded,
    fold_reflection,
    reflect_pad,
)

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _per_plane(code: Tensor) -> Tensor:
    return code[:, :, None, None]


class reference:  # noqa: N801  (a namespace, named as DGNET_FAST_IMPL names it)
    """Plain PyTorch: what every body must compute.

    negative_slope 1 means no activation. Statistics (B, C) and gradients of scale and shift are float32,
    float64 for float64 x. grad_scale and grad_shift are returned without scale and shift too (as if they were
    1 and 0).
    """

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        negative_slope: float,
        eps: float,
        padding: int,
    ) -> Three:
        """(y, mean, rstd)"""
        values = x.to(statistics_dtype(x))
        variance, mean = torch.var_mean(values, dim=(2, 3), correction=0)
        rstd = (variance + eps).rsqrt()
        z = (values - _per_plane(mean)) * _per_plane(rstd)
        if scale is not None:
            z = z * _per_plane(scale) + _per_plane(shift)
        y = z if negative_slope == 1 else F.leaky_relu(z, negative_slope)
        if residual is not None:
            y = y + residual
        y = reflect_pad(y.to(x.dtype), padding)
        return y.contiguous(memory_format=memory_format(x)), mean, rstd

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        negative_slope: float,
        padding: int,
        needs_residual: bool,
    ) -> Four:
        """(grad_x, grad_scale, grad_shift, grad_residual): the last (0,) without padding, then it is grad_y"""
        normal = (x.to(mean.dtype) - _per_plane(mean)) * _per_plane(rstd)
        z = normal if scale is None else normal * _per_plane(scale) + _per_plane(shift)
        grad_y = fold_reflection(grad_y.to(mean.dtype), padding)
        grad_z = torch.where(z > 0, grad_y, grad_y * negative_slope)
        grad_shift = grad_z.sum(dim=(2, 3))
        grad_scale = (grad_z * normal).sum(dim=(2, 3))
        pixels = x.shape[2] * x.shape[3]
        # mean and rstd depend on x: grad_z loses its parts along 1 and along `normal`.
        grad_x = grad_z - _per_plane(grad_shift / pixels) - normal * _per_plane(grad_scale / pixels)
        grad_x = grad_x * _per_plane(rstd if scale is None else rstd * scale)
        grad_residual = _dense_as(grad_y, x) if padding and needs_residual else x.new_empty(0)
        return _dense_as(grad_x, x), grad_scale, grad_shift, grad_residual


def adain_act_reference(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    negative_slope: float | None = None,
    eps: float = 1e-5,
    padding: int = 0,
) -> Tensor:
    """`adain_act` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    _check(x, scale, shift, residual, padding)
    scale, shift = as_statistics(scale, x), as_statistics(shift, x)
    return reference.forward(x, scale, shift, residual, as_slope(negative_slope), eps, padding)[0]


def adain_act(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    negative_slope: float | None = None,
    eps: float = 1e-5,
    padding: int = 0,
) -> Tensor:
    """pad(act(scale * (x - mean) / sqrt(var + eps) + shift) + residual), as one op.

    Args:
        x: (B, C, H, W), none of them 0; float32, bfloat16, float16, or float64 (served by the reference).
        scale, shift: (B, C) both, of x's dtype or float32; or None both, for one and zero.
        residual: of x's shape and dtype, added before the padding; or None. The interior of a padded y serves
            without a copy.
        negative_slope: of the LeakyReLU; None for no activation.
        eps: added to the biased variance.
        padding: pixels of reflect padding on every side of the result, as `F.pad` with mode reflect adds;
            smaller than H and W.

    Returns:
        (B, C, H + 2 padding, W + 2 padding) in x's dtype, in channels_last if x is dense in that order, else
        contiguous. Neither order is copied; an x that is dense in neither is, and so is a residual in another
        order than x.

    Mean and variance are taken over H and W of each sample and channel, in float32 (float64 for float64).
    Autocast does not change the op: it runs in the dtype x has. Gradients flow to x, scale, shift and
    residual, once: double backward raises RuntimeError; use `adain_act_reference` where second derivatives
    are needed.

    Raises:
        ValueError: shapes, dtypes, devices or padding other than these; DGNET_FAST_IMPL forces a body that
            cannot serve.
    """
    check_device("adain_act", x)
    check_padding_is_int(padding)
    return _forward_op(x, scale, shift, residual, as_slope(negative_slope), eps, padding)[0]


def _dense_as(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).contiguous(memory_format=memory_format(x))


def _check(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, padding: int
) -> None:
    check_pictures(x)
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together, or both be None")
    if scale is not None:
        check_affine("scale", scale, x, "BC")
        check_affine("shift", shift, x, "BC")
    if residual is not None:
        check_residual(residual, x)
    check_padding(padding, x)


# ---- the op: schema, bodies, fake, autograd

_DEVICES = tuple(registry.TABLE["adain_act"])


@torch.library.custom_op("dgnet_fast::adain_act", mutates_args=(), device_types=_DEVICES)
def _forward_op(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    negative_slope: float,
    eps: float,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, scale, shift, residual, padding)
    body = registry.implementation("adain_act", x.device.type, x.dtype)
    order = memory_format(x)
    x = x.contiguous(memory_format=order)
    if residual is not None and not dense_innermost(residual, order):
        residual = residual.contiguous(memory_format=order)
    scale, shift = as_statistics(scale, x), as_statistics(shift, x)
    return body.forward(x, scale, shift, residual, negative_slope, eps, padding)


@torch.library.custom_op("dgnet_fast::adain_act_backward", mutates_args=(), device_types=_DEVICES)
def _backward_op(
    grad_y: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    negative_slope: float,
    padding: int,
    needs_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    body = registry.implementation("adain_act", x.device.type, x.dtype)
    order = memory_format(x)
    x, grad_y = x.contiguous(memory_format=order), grad_y.contiguous(memory_format=order)
    scale, shift = as_statistics(scale, x), as_statistics(shift, x)
    return body.backward(grad_y, x, scale, shift, mean, rstd, negative_slope, padding, needs_residual)


@_forward_op.register_fake
def _(x, scale, shift, residual, negative_slope, eps, padding):
    _check(x, scale, shift, residual, padding)
    return empty_padded(x, padding), *new_statistics(x, *x.shape[:2])


@_backward_op.register_fake
def _(grad_y, x, scale, shift, mean, rstd, negative_slope, padding, needs_residual):
    grad_residual = empty_padded(x, 0) if padding and needs_residual else x.new_empty(0)
    return empty_padded(x, 0), *new_statistics(x, *x.shape[:2]), grad_residual


def _setup_context(ctx, inputs, output) -> None:
    x, scale, shift, _, ctx.negative_slope, _, ctx.padding = inputs
    _, mean, rstd = output
    ctx.set_materialize_grads(False)  # no zeros for the statistics
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, scale, shift, mean, rstd)


def _backward(ctx, grad_y, _grad_mean, _grad_rstd):
    if grad_y is None:
        return (None,) * 7
    x, scale, shift, mean, rstd = ctx.saved_tensors
    needs_x, needs_scale, needs_shift, needs_residual, *_ = ctx.needs_input_grad
    grad_x = grad_scale = grad_shift = None
    grad_residual = grad_y  # without padding
    fold = ctx.padding > 0 and needs_residual
    if needs_x or needs_scale or needs_shift or fold:
        grad_x, grad_scale, grad_shift, folded = _backward_op(
            grad_y, x, scale, shift, mean, rstd, ctx.negative_slope, ctx.padding, fold
        )
        grad_residual = folded if fold else grad_y
    return (
        grad_x if needs_x else None,
        grad_scale.to(scale.dtype) if needs_scale else None,
        grad_shift.to(shift.dtype) if needs_shift else None,
        grad_residual if needs_residual else None,
        None,
        None,
        None,
    )


_forward_op.register_autograd(_backward, setup_context=_setup_context)
_backward_op.register_autograd(once_differentiable("adain_act"))
