"""adain_act: instance normalisation, adaptive or plain, with LeakyReLU, a residual and padding, in one pass.

    y = pad(act(scale * (x - mean) / sqrt(var + eps) + shift) + residual)

With scale and shift it is the adaptive instance normalisation of DG-Net's decoder (DG-Net sec. 3.1; AdaIN:
Huang and Belongie 2017, eq. 8), without them the InstanceNorm of its structure encoder.

This module is the pattern of an op: the reference, the public function, what the op allocates and checks, its
autograd, and the calls into its bodies. define.py makes an op of them, registry.py says who serves what.
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
    new_statistics,
    statistics_dtype,
)
from dgnet_fast.ops.bodies import Arguments, addresses, cpp_body, cuda_body, layout, triton_body
from dgnet_fast.ops.define import define
from dgnet_fast.ops.layouts import dense_innermost, memory_format
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


class reference:
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
        """Returns (y, mean, rstd)."""
        values = x.to(statistics_dtype(x))
        variance, mean = torch.var_mean(values, dim=(2, 3), correction=0)
        rstd = (variance + eps).rsqrt()
        z = (values - _per_plane(mean)) * _per_plane(rstd)
        if scale is not None and shift is not None:
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
        """Returns (grad_x, grad_scale, grad_shift, grad_residual).

        The last is grad_y itself without padding, and is then returned empty, (0,), as it is where it is not needed.
        """
        normal = (x.to(mean.dtype) - _per_plane(mean)) * _per_plane(rstd)
        z = normal if scale is None or shift is None else normal * _per_plane(scale) + _per_plane(shift)
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

    Example:
        >>> import torch
        >>> from dgnet_fast.ops import adain_act, adain_act_reference
        >>> x, scale, shift = torch.randn(2, 3, 8, 4), torch.rand(2, 3), torch.rand(2, 3)
        >>> y = adain_act(x, scale, shift, negative_slope=0.2)
        >>> torch.allclose(y, adain_act_reference(x, scale, shift, negative_slope=0.2), atol=1e-5)
        True
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
    if scale is not None and shift is not None:
        check_affine("scale", scale, x, "BC")
        check_affine("shift", shift, x, "BC")
    if residual is not None:
        check_residual(residual, x)
    check_padding(padding, x)


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    mean, rstd = new_statistics(a.x, *a.x.shape[:2])
    return {"y": empty_padded(a.x, a.padding), "mean": mean, "rstd": rstd}


def _gradients(a: Arguments) -> dict[str, Tensor]:
    grad_scale, grad_shift = new_statistics(a.x, *a.x.shape[:2])
    return {
        "grad_x": torch.empty_like(a.x),
        "grad_scale": grad_scale,
        "grad_shift": grad_shift,
        "grad_residual": torch.empty_like(a.x) if a.padding and a.needs_residual else a.x.new_empty(0),
    }


def _prepare(a: Arguments) -> Tensor:
    _check(a.x, a.scale, a.shift, a.residual, a.padding)
    order = memory_format(a.x)
    a.x = a.x.contiguous(memory_format=order)
    if a.residual is not None and not dense_innermost(a.residual, order):
        a.residual = a.residual.contiguous(memory_format=order)
    a.scale, a.shift = as_statistics(a.scale, a.x), as_statistics(a.shift, a.x)
    return a.x


def _prepare_backward(a: Arguments) -> Tensor:
    order = memory_format(a.x)
    a.x, a.grad_y = a.x.contiguous(memory_format=order), a.grad_y.contiguous(memory_format=order)
    a.scale, a.shift = as_statistics(a.scale, a.x), as_statistics(a.shift, a.x)
    return a.x


def _setup_context(ctx, a: Arguments, output) -> None:
    _, mean, rstd = output
    ctx.set_materialize_grads(False)  # no zeros for the statistics
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(a.x, a.scale, a.shift, mean, rstd)
    ctx.negative_slope, ctx.padding = a.negative_slope, a.padding


def _backward(ctx, grad_y, _grad_mean, _grad_rstd) -> dict[str, Tensor | None]:
    if grad_y is None:
        return {}
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
    return {
        "x": grad_x if needs_x else None,
        "scale": grad_scale.to(scale.dtype) if needs_scale and grad_scale is not None else None,
        "shift": grad_shift.to(shift.dtype) if needs_shift and grad_shift is not None else None,
        "residual": grad_residual if needs_residual else None,
    }


_forward_op, _backward_op = define(
    "adain_act",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
)

# ---- its bodies. Of what they are given only the residual may be the interior of a padded buffer, which is read by
# its strides: stride 1 along W in NCHW; 1 along C and C along W in channels_last.


def _forward_call(a: Arguments) -> dict[str, Any]:
    return {
        "layout": layout(a.x, a.padding),
        **addresses(a, "x", "scale", "shift", "residual", "y", "mean", "rstd"),
        "residual_strides": (0, 0, 0) if a.residual is None else a.residual.stride()[:3],
        "slope": a.negative_slope,
        "eps": a.eps,
    }


def _backward_call(a: Arguments) -> dict[str, Any]:
    return {
        "layout": layout(a.x, a.padding),
        **addresses(a, "grad_y", "x", "scale", "shift", "mean", "rstd"),
        **addresses(a, "grad_x", "grad_scale", "grad_shift", "grad_residual"),
        "slope": a.negative_slope,
    }


cpp = cpp_body("adain_act", _forward_call, _backward_call)

#: Bytes from and to memory, with n bytes in x and a residual r (0 or n): the minimum, x and residual in and y out, is
#: 2n + r forward, and 3n backward (x, grad_y, grad_x). NCHW moves the minimum; channels_last reads x, and in the
#: backward grad_y, once more: 3n + r and 5n where they do not stay in the L2 cache. Padding makes y and grad_y larger
#: by its border, and grad_residual adds n where it is asked for.
cuda = cuda_body("adain_act", _forward_call, _backward_call, workspace=("layout",))
triton = triton_body("adain_act")
