"""appearance_mlp: the MLPs from an appearance code to all AdaIN parameters of the decoder, as one op.

The code is cut in Q consecutive parts (DG-Net: four quarters); MLP m of 2 Q reads part m mod Q, the first Q
give scales, the others shifts. Each is three linear layers with LeakyReLU between. The first half of an MLP's
outputs serves the first AdaIN of its residual block, the second half the second (DG-Net sec. 3.1).

The reference, the public function, what the op allocates and checks, its autograd, and the calls into its bodies;
registry.py says who serves what.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import check_device, statistics_dtype
from dgnet_fast.ops.bodies import Arguments, triton_body
from dgnet_fast.ops.define import define

Three = tuple[Tensor, Tensor, Tensor]
Seven = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

LAYERS = 3


def _whatever_autocast(function: Callable) -> Callable:
    """Runs the function outside autocast: dtypes are settled, and products inside keep theirs."""

    @functools.wraps(function)
    def settled(*given):
        with torch.autocast(given[0].device.type, enabled=False):
            return function(*given)

    return settled


class reference:
    """Plain PyTorch: what every body must compute. Weights and biases are used in the code's dtype.

    Layers come one after the other, as graphs call the op.
    """

    @staticmethod
    @_whatever_autocast
    def forward(
        code: Tensor,
        weight0: Tensor,
        weight1: Tensor,
        weight2: Tensor,
        bias0: Tensor,
        bias1: Tensor,
        bias2: Tensor,
        negative_slope: float,
    ) -> Three:
        """Returns parameters (2, 2 Q, B, C) and the hidden layers (2 Q, B, features) after their activation."""
        x = _inputs(code, weight0)
        hidden = []
        for weight, bias in ((weight0, bias0), (weight1, bias1), (weight2, bias2)):
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
    @_whatever_autocast
    def backward(
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
    ) -> Seven:
        """Returns grad_code and the gradients of the weights and of the biases; what is not needed is empty, (0,)."""
        hidden, weights = (hidden0, hidden1), (weight0, weight1, weight2)
        (mlps, batch, _), channels = hidden0.shape, grad.shape[-1]
        grad = grad.to(code.dtype).reshape(mlps, 2, batch, channels).transpose(1, 2).reshape(mlps, batch, -1)
        inputs = [_inputs(code, weight0), *hidden]
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
        (w0, w1, w2), (b0, b1, b2) = grad_weights, grad_biases
        return grad_code, w0, w1, w2, b0, b1, b2


def appearance_mlp_reference(
    code: Tensor, weights: list[Tensor], biases: list[Tensor], *, negative_slope: float
) -> Tensor:
    """`appearance_mlp` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    _check(code, weights, biases, negative_slope)
    return reference.forward(_low_precision(code), *weights, *biases, float(negative_slope))[0]


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
    """Returns each MLP's part of the code, (2 Q, B, n_0)."""
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
    first, inputs = weights[0], 0
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


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    mlps, batch = a.weight0.shape[0], a.code.shape[0]
    shape = (2, mlps, batch, a.weight2.shape[1] // 2)
    return {
        "parameters": a.code.new_empty(shape, dtype=statistics_dtype(a.code)),
        "hidden0": a.code.new_empty((mlps, batch, a.weight0.shape[1])),
        "hidden1": a.code.new_empty((mlps, batch, a.weight1.shape[1])),
    }


def _gradients(a: Arguments) -> dict[str, Tensor]:
    weights = (a.weight0, a.weight1, a.weight2)
    return {
        "grad_code": a.code.new_empty(a.code.shape if a.needs_code else 0),
        **{f"grad_weight{k}": w.new_empty(w.shape if a.needs_weights else 0) for k, w in enumerate(weights)},
        **{
            f"grad_bias{k}": w.new_empty(w.shape[:2] if a.needs_weights else 0) for k, w in enumerate(weights)
        },
    }


def _prepare(a: Arguments) -> Tensor:
    vars(a).update({name: x.contiguous() for name, x in vars(a).items() if isinstance(x, Tensor)})
    return a.code


def _setup_context(ctx, a: Arguments, output) -> None:
    _, *hidden = output
    ctx.mark_non_differentiable(*hidden)
    ctx.save_for_backward(a.code, *hidden, a.weight0, a.weight1, a.weight2)
    ctx.negative_slope = a.negative_slope


def _backward(ctx, grad: Tensor, *_grad_hidden) -> dict[str, Tensor]:
    needs = ctx.needs_input_grad[:-1]
    gradients = _backward_op(grad, *ctx.saved_tensors, ctx.negative_slope, needs[0], any(needs[1:]))
    names = ("code", "weight0", "weight1", "weight2", "bias0", "bias1", "bias2")
    return {name: g for name, g, need in zip(names, gradients, needs, strict=True) if need}


_forward_op, _backward_op = define(
    "appearance_mlp",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare,
    setup_context=_setup_context,
    backward=_backward,
)

# ---- its bodies


class aten:
    """For CPU tensors: PyTorch's own float32 products whatever the dtype; no C++ of ours would beat them.

    A CPU without bfloat16 products emulates them: forward and backward of 48 bfloat16 codes took 58 ms this
    way and 442 ms in bfloat16 under torch.compile (one thread, AVX2). In float32 PyTorch's batched products
    run at 44 GFLOP/s a thread, which leaves no room to gain; float32 weights are read as they are.
    """

    @staticmethod
    def forward(code: Tensor, *rest: Any) -> Three:
        parameters, *hidden = reference.forward(code.float(), *map(_wide, rest))
        return parameters, *(h.to(code.dtype) for h in hidden)

    @staticmethod
    def backward(grad: Tensor, code: Tensor, *rest: Any) -> Seven:
        grad_code, *gradients = reference.backward(grad, code.float(), *map(_wide, rest))
        weight_dtype = rest[2].dtype  # after the hidden layers
        return grad_code.to(code.dtype), *(g.to(weight_dtype) for g in gradients)


def _wide(value: Tensor | float) -> Tensor | float:
    return value.float() if isinstance(value, Tensor) else value


triton = triton_body("appearance_mlp")
