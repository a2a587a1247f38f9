"""layer_norm_act: the decoder's LayerNorm with LeakyReLU and padding, in one pass.

    y = pad(act((x + bias - mean) / (std + eps) * gamma + beta))

Mean and unbiased standard deviation are those of a whole sample, over C, H and W; gamma and beta belong to a
channel; eps is added outside the root (the norm after DG-Net's upsampling, sec. 3.1).

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
    new_statistics,
    statistics_dtype,
)
from dgnet_fast.ops.bodies import Arguments, Body, addresses, cpp_body, cuda_body, layout, triton_body
from dgnet_fast.ops.define import define
from dgnet_fast.ops.layouts import is_channels_last, memory_format
from dgnet_fast.ops.padding import (
    check_padding,
    check_padding_is_int,
    fold_reflection,
    reflect_pad,
)
from dgnet_fast.ops.phases import joined, parted

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]

#: A standard deviation below this many eps counts as 0 in the backward: `rdenom` does not hold it, and its
#: part in the gradient is smaller than that.
LEAST_STD = 1e-6


def _per_sample(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _per_channel(value: Tensor) -> Tensor:
    return value[:, None, None]


class reference:
    """Plain PyTorch: what every body must compute.

    negative_slope 1 means no activation. mean and rdenom = 1 / (std + eps) are (B,), the gradients of gamma
    and beta (C,): float32, float64 for float64 x.
    """

    @staticmethod
    def forward(
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        bias: Tensor | None,
        negative_slope: float,
        eps: float,
        padding: int,
        phases: bool,
    ) -> Three:
        """Returns (y, mean, rdenom)."""
        x = joined(x) if phases else x
        values = _biased(x.to(statistics_dtype(x)), bias)
        std, mean = torch.std_mean(values, dim=(1, 2, 3))
        rdenom = 1 / (std + eps)
        factor = _per_sample(rdenom) * _per_channel(gamma)
        z = torch.addcmul(_per_channel(beta), values - _per_sample(mean), factor)
        y = z if negative_slope == 1 else F.leaky_relu(z, negative_slope)
        y = reflect_pad(y.to(x.dtype), padding)
        return y.contiguous(memory_format=memory_format(x)), mean, rdenom

    @staticmethod
    def backward(
        grad_y: Tensor,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        bias: Tensor | None,
        mean: Tensor,
        rdenom: Tensor,
        negative_slope: float,
        eps: float,
        padding: int,
        phases: bool,
    ) -> Four:
        """Returns (grad_x, grad_gamma, grad_beta, grad_bias); the last is empty, (0,), without a bias."""
        order = memory_format(x)
        x = joined(x) if phases else x
        centred = _biased(x.to(mean.dtype), bias) - _per_sample(mean)
        r, c = _per_sample(rdenom), _per_channel(gamma)
        z = centred * r * c + _per_channel(beta)
        grad_y = fold_reflection(grad_y.to(mean.dtype), padding)
        grad_z = torch.where(z > 0, grad_y, grad_y * negative_slope)
        grad_beta = grad_z.sum(dim=(0, 2, 3))
        grad_gamma = (grad_z * centred * r).sum(dim=(0, 2, 3))
        grad_n = grad_z * c
        elements = x[0].numel()
        std = 1 / rdenom - eps
        # d std / d x = centred / ((elements - 1) std), taken as 0 where std is 0, as PyTorch does.
        share = (grad_n * centred).sum(dim=(1, 2, 3)) * rdenom.square() / (std * (elements - 1))
        share = torch.where(std <= LEAST_STD * eps, 0, share)
        grad_x = (grad_n - _per_sample(grad_n.mean(dim=(1, 2, 3)))) * r - centred * _per_sample(share)
        grad_bias = grad_x.new_empty(0) if bias is None else grad_x.sum(dim=(0, 2, 3))
        grad_x = grad_x.to(x.dtype)
        grad_x = parted(grad_x, order) if phases else grad_x.contiguous(memory_format=order)
        return grad_x, grad_gamma, grad_beta, grad_bias


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + _per_channel(bias)


def layer_norm_act_reference(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None = None,
    *,
    negative_slope: float | None = None,
    eps: float = 1e-5,
    padding: int = 0,
    phases: bool = False,
) -> Tensor:
    """`layer_norm_act` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    _check(x, gamma, beta, bias, padding, phases)
    affine = as_statistics(gamma, x), as_statistics(beta, x)
    bias = None if bias is None else as_statistics(bias, x)
    return reference.forward(x, *affine, bias, as_slope(negative_slope), eps, padding, phases)[0]


def layer_norm_act(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None = None,
    *,
    negative_slope: float | None = None,
    eps: float = 1e-5,
    padding: int = 0,
    phases: bool = False,
) -> Tensor:
    """pad(act((x + bias - mean) / (std + eps) * gamma + beta)), as one op.

    Args:
        x: (B, C, H, W), none of them 0; float32, bfloat16, float16, or float64 (served by the reference).
        gamma, beta: (C,), of x's dtype or float32.
        bias: the same, added to x; or None.
        negative_slope: of the LeakyReLU; None for no activation.
        eps: added to the unbiased standard deviation, outside the root.
        padding: pixels of reflect padding on every side of the result, as `F.pad` with mode reflect adds;
            smaller than H and W.
        phases: x is a picture (B, C, 2H, 2W) in phases, (B, 4 C, H, W) as `dgnet_fast.ops.phases` has them, and the result
            is of the picture. In Triton, in channels_last, they are read where they are; other bodies join them first.

    Returns:
        (B, C, H + 2 padding, W + 2 padding) in x's dtype, or (B, C, 2H + 2 padding, 2W + 2 padding) with phases; in
        channels_last if x is dense in that order, else contiguous. Neither order is copied; an x that is dense in
        neither is.

    Mean and standard deviation are taken over C, H and W of each sample, in float32 with partial sums in
    float64 (all float64 for float64). Autocast does not change the op: it runs in the dtype x has. Gradients
    flow to x, gamma, beta and bias, once: double backward raises RuntimeError; use `layer_norm_act_reference` where
    second derivatives are needed. A sample of one element has no unbiased deviation: NaN, as in PyTorch.

    Raises:
        ValueError: shapes, dtypes, devices or padding other than these; DGNET_FAST_IMPL forces a body that
            cannot serve.
    """
    check_device("layer_norm_act", x)
    check_padding_is_int(padding)
    return _forward_op(x, gamma, beta, bias, as_slope(negative_slope), eps, padding, phases)[0]


def _check(x: Tensor, gamma: Tensor, beta: Tensor, bias: Tensor | None, padding: int, phases: bool) -> None:
    check_pictures(x)
    if phases and x.shape[1] % 4:
        raise ValueError(f"x in phases must have 4 C channels, got {x.shape[1]}")
    phase = x[:, : x.shape[1] // 4] if phases else x
    check_affine("gamma", gamma, phase, "C")
    check_affine("beta", beta, phase, "C")
    if bias is not None:
        check_affine("bias", bias, phase, "C")
    check_padding(padding, x)


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    mean, rdenom = new_statistics(a.x, a.x.shape[0])
    batch, channels, height, width = a.x.shape
    if a.phases:
        channels, height, width = channels // 4, 2 * height, 2 * width
    shape = (batch, channels, height + 2 * a.padding, width + 2 * a.padding)
    order = memory_format(a.x)
    y = torch.empty(shape, dtype=a.x.dtype, device=a.x.device, memory_format=order)
    return {"y": y, "mean": mean, "rdenom": rdenom}


def _gradients(a: Arguments) -> dict[str, Tensor]:
    grad_gamma, grad_beta = new_statistics(a.x, a.gamma.shape[0])
    grad_bias = grad_gamma.new_empty(0 if a.bias is None else a.bias.shape[0])
    return {
        "grad_x": torch.empty_like(a.x),
        "grad_gamma": grad_gamma,
        "grad_beta": grad_beta,
        "grad_bias": grad_bias,
    }


def _prepare(a: Arguments) -> Tensor:
    _check(a.x, a.gamma, a.beta, a.bias, a.padding, a.phases)
    a.x = a.x.contiguous(memory_format=memory_format(a.x))
    a.gamma, a.beta, a.bias = (as_statistics(value, a.x) for value in (a.gamma, a.beta, a.bias))
    return a.x


def _prepare_backward(a: Arguments) -> Tensor:
    order = memory_format(a.x)
    a.x, a.grad_y = a.x.contiguous(memory_format=order), a.grad_y.contiguous(memory_format=order)
    a.gamma, a.beta, a.bias = (as_statistics(value, a.x) for value in (a.gamma, a.beta, a.bias))
    return a.x


def _setup_context(ctx, a: Arguments, output) -> None:
    _, mean, rdenom = output
    ctx.set_materialize_grads(False)  # no zeros for the statistics
    ctx.mark_non_differentiable(mean, rdenom)
    ctx.save_for_backward(a.x, a.gamma, a.beta, a.bias, mean, rdenom)
    ctx.negative_slope, ctx.eps, ctx.padding, ctx.phases = a.negative_slope, a.eps, a.padding, a.phases


def _backward(ctx, grad_y, _grad_mean, _grad_rdenom) -> dict[str, Tensor | None]:
    if grad_y is None:
        return {}
    x, gamma, beta, bias, mean, rdenom = ctx.saved_tensors
    grad_x, grad_gamma, grad_beta, grad_bias = _backward_op(
        grad_y, x, gamma, beta, bias, mean, rdenom, ctx.negative_slope, ctx.eps, ctx.padding, ctx.phases
    )
    needs_x, needs_gamma, needs_beta, needs_bias, *_ = ctx.needs_input_grad
    return {
        "x": grad_x if needs_x else None,
        "gamma": grad_gamma.to(gamma.dtype) if needs_gamma else None,
        "beta": grad_beta.to(beta.dtype) if needs_beta else None,
        "bias": grad_bias.to(bias.dtype) if needs_bias else None,
    }


_forward_op, _backward_op = define(
    "layer_norm_act",
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
        "layout": layout(a.x, a.padding),
        **addresses(a, "x", "gamma", "beta", "y", "mean", "rdenom"),
        "slope": a.negative_slope,
        "eps": a.eps,
    }


def _backward_call(a: Arguments) -> dict[str, Any]:
    return {
        "layout": layout(a.x, a.padding),
        **addresses(a, "grad_y", "x", "gamma", "beta", "mean", "rdenom", "grad_x", "grad_gamma", "grad_beta"),
        "slope": a.negative_slope,
        "eps": a.eps,
    }


def _plainly(body: Body) -> Body:
    """A body that takes neither phases nor a bias, given the picture that they make."""

    def forward(a: Arguments) -> None:
        body.forward(_plain(a, x=_picture(a)))

    def backward(a: Arguments) -> None:
        x = _picture(a)
        grad_x = torch.empty_like(x) if a.phases else a.grad_x
        body.backward(_plain(a, x=x, grad_x=grad_x))
        if a.bias is not None:
            a.grad_bias.copy_(grad_x.sum((0, 2, 3), dtype=a.grad_bias.dtype))
        if a.phases:
            a.grad_x.copy_(parted(grad_x, memory_format(a.x)))

    return Body(forward, backward)


def _plain(a: Arguments, **changed: Tensor) -> Arguments:
    return Arguments(vars(a) | changed | {"phases": False, "bias": None})


def _picture(a: Arguments) -> Tensor:
    x = joined(a.x, a.bias) if a.phases else a.x
    return x if a.phases or a.bias is None else (x + _per_channel(a.bias)).to(x.dtype)


cpp = _plainly(cpp_body("layer_norm_act", _forward_call, _backward_call))

#: Bytes from and to memory, with n bytes in x: the minimum is 2n forward (x in, y out) and 3n backward (x and grad_y
#: in, grad_x out). x is read twice forward, x and grad_y backward: 3n and 5n where a sample does not stay in the L2
#: cache between. Padding makes y and grad_y larger by its border.
cuda = _plainly(cuda_body("layer_norm_act", _forward_call, _backward_call, workspace=("layout",)))
_triton = triton_body("layer_norm_act")
_triton_plainly = _plainly(_triton)


def _in_place(a: Arguments) -> bool:
    """Whether the Triton body takes phases where they are: in channels_last they are the picture's pixels, reordered."""
    return not a.phases or is_channels_last(a.x)


triton = Body(
    lambda a: (_triton if _in_place(a) else _triton_plainly).forward(a),
    lambda a: (_triton if _in_place(a) else _triton_plainly).backward(a),
)
