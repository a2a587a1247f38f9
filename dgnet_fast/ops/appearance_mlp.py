"""appearance_mlp: the MLPs from an appearance code to all AdaIN parameters of the decoder, as one op.

The code is cut in Q consecutive parts (DG-Net: four quarters); MLP m of 2 Q reads part m mod Q, the first Q
give scales, the others shifts. Each is three linear layers with LeakyReLU between. The first half of an MLP's
outputs serves the first AdaIN of its residual block, the second half the second (DG-Net sec. 3.1).

The reference, the schema with its fake and its autograd, the public function; the bodies are in
appearance_mlp_bodies.py, who serves what in registry.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import check_device, once_differentiable, statistics_dtype

Three = tuple[Tensor, Tensor, Tensor]
Seven = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

LAYERS = 3


class reference:  # noqa: N801  (a namespace, named as DGNET_FAST_IMPL names it)
    """Plain PyTorch: what every body must compute. Weights and biases are used in the code's dtype."""

    @staticmethod
    def forward(code: Tensor, weights: list[Tensor], biases: list[Tensor], negative_slope: float) -> Three:
        """(parameters (2, 2 Q, B, C), hidden layers (2 Q, B, features) after their activation)"""
        x = _inputs(code, weights[0])
        hidden = []
        for weight, bias in zip(weights, biases, strict=True):
            x = torch.baddbmm(bias.to(x.dtype).unsqueeze(1), x, weight.to(x.dtype).transpose(1, 2))
            if len(hidden) < LAYERS - 1:
                x = F.leaky_relu(x, negative_slope)
                hidden.append(x)
        # (2 Q, B, 2 C): an MLP's outputs are two AdaIN layers' parameters
        mlps, batch, features = x.shape
        parameters = x.view(mlps, batch, 2, features // 2).transpose(1, 2)
        parameters = parameters.reshape(2, mlps, batch, features // 2).to(statistics_dtype(code)).contiguous()
        return parameters, hidden[0], hidden[1]

    @staticmethod
    def backward(
        grad: Tensor,
        code: Tensor,
        hidden: list[Tensor],
        weights: list[Tensor],
        negative_slope: float,
        needs_code: bool,
        needs_weights: bool,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(grad_code, gradients of the weights, of the biases); empty, (0,), what is not needed"""
        (mlps, batch, _), channels = hidden[0].shape, grad.shape[-1]
        grad = grad.to(code.dtype).reshape(mlps, 2, batch, channels).transpose(1, 2).reshape(mlps, batch, -1)
        inputs = [_inputs(code, weights[0]), *hidden]
        grad_weights = [w.new_empty(0) for w in weights]
        grad_biases = [w.new_empty(0) for w in weights]
        for k in reversed(range(LAYERS)):
            if needs_weights:
                grad_weights[k] = torch.bmm(grad.transpose(1, 2), inputs[k]).to(weights[k].dtype)
                grad_biases[k] = grad.sum(1).to(weights[k].dtype)
            if k > 0 or needs_code:
                grad = torch.bmm(grad, weights[k].to(grad.dtype))
            if k > 0:
                grad = torch.where(hidden[k - 1] > 0, grad, grad * negative_slope)
        grad_code = code.new_empty(0)
        if needs_code:
            grad_code = grad.view(2, mlps // 2, batch, -1).sum(0).transpose(0, 1).reshape(code.shape)
        return grad_code, grad_weights, grad_biases


def appearance_mlp_reference(
    code: Tensor, weights: list[Tensor], biases: list[Tensor], *, negative_slope: float
) -> Tensor:
    """`appearance_mlp` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    _check(code, weights, biases, negative_slope)
    return reference.forward(_low_precision(code), weights, biases, float(negative_slope))[0]


def appearance_mlp(
    code: Tensor, weights: list[Tensor], biases: list[Tensor], *, negative_slope: float
) -> Tensor:
    """All AdaIN parameters from an appearance code, as one op.

    Args:
        code: (B, Q n_0), B not 0; float32, bfloat16, float16, or float64 (served by the reference).
        weights: of the three layers, (2 Q, n_1, n_0), (2 Q, n_2, n_1) and (2 Q, 2 C, n_2), of the code's
            dtype or float32.
        biases: (2 Q, n_1), (2 Q, n_2), (2 Q, 2 C), of the weights' dtype.
        negative_slope: of the LeakyReLU between layers, at least 0; 0 is ReLU.

    Returns:
        (2, 2 Q, B, C), contiguous: [0, k] is the scale of the decoder's k-th AdaIN, [1, k] its shift, ready for
        `adain_act`. float32 whatever the code's dtype, as statistics are (float64 for float64).

    Products are of the code's dtype with float32 sums; float32 ones follow
    `torch.set_float32_matmul_precision`. Under autocast the code is cast to autocast's dtype, as a matmul's
    arguments are, while weights may stay float32 and get float32 gradients. Gradients flow to code, weights
    and biases, once: double backward raises RuntimeError; use `appearance_mlp_reference` where second
    derivatives are needed.

    Raises:
        ValueError: shapes, dtypes, devices or slope other than these; DGNET_FAST_IMPL forces a body that
            cannot serve.
    """
    _check(code, weights, biases, negative_slope)
    code = _low_precision(code)
    return _forward_op(code, *weights, *biases, float(negative_slope))[0]


def _low_precision(code: Tensor) -> Tensor:
    """The code in autocast's dtype where autocast is on; float64 is left alone, as matmuls leave it."""
    kind = code.device.type
    if code.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return code.to(torch.get_autocast_dtype(kind))
    return code


def _inputs(code: Tensor, weight: Tensor) -> Tensor:
    """(2 Q, B, n_0): each MLP's part of the code."""
    parts = code.reshape(code.shape[0], -1, weight.shape[2]).transpose(0, 1)
    return parts.repeat(2, 1, 1)


def _check(code: Tensor, weights: list[Tensor], biases: list[Tensor], negative_slope: float) -> None:
    check_device("appearance_mlp", code)
    if code.dim() != 2:
        raise ValueError(f"code must have 2 dimensions (B, Q n), got shape {tuple(code.shape)}")
    if code.numel() == 0:
        raise ValueError(f"code must not be empty, got shape {tuple(code.shape)}")
    if code.dtype not in registry.DTYPES:
        allowed = ", ".join(str(dtype) for dtype in registry.DTYPES)
        raise ValueError(f"code must have one of the dtypes {allowed}, got {code.dtype}")
    if len(weights) != LAYERS or len(biases) != LAYERS:
        raise ValueError(f"weights and biases must be {LAYERS} each, got {len(weights)} and {len(biases)}")
    if not negative_slope >= 0:
        raise ValueError(f"negative_slope must be at least 0, got {negative_slope}")
    first, inputs = weights[0], None
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.dim() != 3 or weight.numel() == 0:
            raise ValueError(
                f"weights[{k}] must have 3 dimensions (2 Q, out, in), none of them 0, "
                f"got shape {tuple(weight.shape)}"
            )
        mlps, outputs, _ = weight.shape
        if k == 0:
            inputs = weight.shape[2]
            if mlps % 2 or code.shape[1] != mlps // 2 * inputs:
                raise ValueError(
                    f"code must have a part of {inputs} for every two of the {mlps} MLPs of weights[0], "
                    f"got shape {tuple(code.shape)}"
                )
        if weight.shape[0] != first.shape[0] or weight.shape[2] != inputs:
            raise ValueError(
                f"weights[{k}] must have shape ({first.shape[0]}, out, {inputs}), got {tuple(weight.shape)}"
            )
        if bias.shape != weight.shape[:2]:
            raise ValueError(f"biases[{k}] must have shape {(mlps, outputs)}, got {tuple(bias.shape)}")
        for name, tensor in ((f"weights[{k}]", weight), (f"biases[{k}]", bias)):
            if tensor.dtype != first.dtype or tensor.dtype not in (code.dtype, torch.float32):
                raise ValueError(
                    f"{name} must have the code's dtype {code.dtype} or torch.float32, as all others have, "
                    f"got {tensor.dtype}"
                )
            if tensor.device != code.device:
                raise ValueError(f"{name} must be on the code's device {code.device}, got {tensor.device}")
        inputs = outputs
    if inputs % 2:
        raise ValueError(f"weights[{LAYERS - 1}] must have an even number of outputs, got {inputs}")


# ---- the op: schema, bodies, fake, autograd. Layers one by one, for schemas have no gradients of lists in them.

_DEVICES = tuple(registry.TABLE["appearance_mlp"])


@torch.library.custom_op("dgnet_fast::appearance_mlp", mutates_args=(), device_types=_DEVICES)
def _forward_op(
    code: Tensor,
    weight0: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    bias0: Tensor,
    bias1: Tensor,
    bias2: Tensor,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = [weight.contiguous() for weight in (weight0, weight1, weight2)]
    biases = [bias.contiguous() for bias in (bias0, bias1, bias2)]
    body = registry.implementation("appearance_mlp", code.device.type, code.dtype)
    with torch.autocast(code.device.type, enabled=False):  # dtypes are settled; products inside keep theirs
        return body.forward(code.contiguous(), weights, biases, negative_slope)


@torch.library.custom_op("dgnet_fast::appearance_mlp_backward", mutates_args=(), device_types=_DEVICES)
def _backward_op(
    grad: Tensor,
    code: Tensor,
    hidden0: Tensor,
    hidden1: Tensor,
    weight0: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    negative_slope: float,
    needs_code: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = [weight.contiguous() for weight in (weight0, weight1, weight2)]
    body = registry.implementation("appearance_mlp", code.device.type, code.dtype)
    code, grad, hidden = code.contiguous(), grad.contiguous(), [hidden0, hidden1]
    with torch.autocast(code.device.type, enabled=False):
        grad_code, grad_weights, grad_biases = body.backward(
            grad, code, hidden, weights, negative_slope, needs_code, needs_weights
        )
    return grad_code, *grad_weights, *grad_biases


@_forward_op.register_fake
def _(code, weight0, weight1, weight2, bias0, bias1, bias2, negative_slope):
    mlps, batch = weight0.shape[0], code.shape[0]
    parameters = code.new_empty((2, mlps, batch, weight2.shape[1] // 2), dtype=statistics_dtype(code))
    return parameters, *(code.new_empty((mlps, batch, w.shape[1])) for w in (weight0, weight1))


@_backward_op.register_fake
def _(grad, code, hidden0, hidden1, weight0, weight1, weight2, negative_slope, needs_code, needs_weights):
    weights = (weight0, weight1, weight2)
    return (
        code.new_empty(code.shape if needs_code else 0),
        *(w.new_empty(w.shape if needs_weights else 0) for w in weights),
        *(w.new_empty(w.shape[:2] if needs_weights else 0) for w in weights),
    )


def decomposition(code: Tensor, *rest: Tensor | float) -> Three:
    """The reference with the op's own arguments, one tensor after the other, as graphs call it."""
    *tensors, negative_slope = rest
    return reference.forward(code, tensors[:LAYERS], tensors[LAYERS:], negative_slope)


def _setup_context(ctx, inputs, output) -> None:
    code, *tensors, ctx.negative_slope = inputs
    _, *hidden = output
    ctx.mark_non_differentiable(*hidden)
    ctx.save_for_backward(code, *hidden, *tensors[:LAYERS])


def _backward(ctx, grad, *_grad_hidden):
    needs = ctx.needs_input_grad[:-1]
    gradients = _backward_op(grad, *ctx.saved_tensors, ctx.negative_slope, needs[0], any(needs[1:]))
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
_backward_op.register_autograd(once_differentiable("appearance_mlp"))
