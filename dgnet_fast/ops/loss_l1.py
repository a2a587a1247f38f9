"""loss_l1: mean absolute differences of many (prediction, target) pairs, per stream, as one op.

    term[k, s] = mean over stream s of |predictions[k] - targets[k]|

The reconstruction terms of DG-Net's objective (eqs. 1, 3, 5 and the cycle). The forward leaves the sign of every
difference in two bits, and the backward needs nothing else: with bfloat16 predictions and float32 targets 6.25
and 2.25 bytes an element, where reading both again would take 6 and 8, and neither input is kept for it.

The reference, the schema with its fake and its autograd, the public function; the bodies are in
loss_l1_bodies.py, who serves what in registry.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import check_device, once_differentiable

#: Signs are stored by blocks of this many elements of a stream, in the prediction's memory order: byte j of a
#: block holds those of elements j, j + BLOCK / 4, … from its lowest bits up; 1 where prediction > target, 2 where
#: prediction < target, else 0. Keep in step with csrc/loss_l1.h and kernels/loss_l1.py.
BLOCK = 1024
SIGN_BYTES = BLOCK // 4


def blocks(elements: int) -> int:
    """Blocks of signs in a stream of so many elements."""
    return -(-elements // BLOCK)


def elements(x: Tensor) -> int:
    """Elements of a stream of x (S, ...)."""
    return x.numel() // x.shape[0]


def is_channels_last(x: Tensor) -> bool:
    """Whether x (S, B, C, H, W) is dense in (S, B, H, W, C) order, and not in its own as well."""
    return x.dim() == 5 and not x.is_contiguous() and x.permute(0, 1, 3, 4, 2).is_contiguous()


def in_order(x: Tensor, channels_last: bool) -> Tensor:
    """x (S, ...) as (S, elements) in memory order: of pixels where channels_last, else its own."""
    return (x.permute(0, 1, 3, 4, 2) if channels_last else x).flatten(1).contiguous()


def terms_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 if a tensor is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _difference(prediction: Tensor, target: Tensor) -> Tensor:
    dtype = terms_dtype((prediction, target))
    return prediction.to(dtype) - target.to(dtype)


class reference:  # noqa: N801  (a namespace, named as DGNET_FAST_IMPL names it)
    """Plain PyTorch: what every body must compute."""

    @staticmethod
    def forward(
        predictions: list[Tensor], targets: list[Tensor], channels_last: list[bool]
    ) -> tuple[Tensor, Tensor]:
        """(means (P, S), signs of all pairs as bytes: pair after pair, in a pair stream after stream)"""
        means, signs = [], []
        for prediction, target, order in zip(predictions, targets, channels_last, strict=True):
            difference = _difference(prediction, target)
            means.append(difference.abs().flatten(1).mean(dim=1))
            codes = (difference > 0) + 2 * (difference < 0).to(torch.uint8)
            codes = F.pad(in_order(codes, order), (0, -elements(prediction) % BLOCK))
            codes = codes.view(-1, 4, SIGN_BYTES)
            signs.append(codes[:, 0] + 4 * codes[:, 1] + 16 * codes[:, 2] + 64 * codes[:, 3])
        dtype = terms_dtype([*predictions, *targets])
        return torch.stack([mean.to(dtype) for mean in means]), torch.cat(signs).flatten()

    @staticmethod
    def backward(
        grad: Tensor, signs: Tensor, sizes: list[int], dtypes: list[torch.dtype], needed: list[bool]
    ) -> list[Tensor]:
        """Gradients (S, elements) of the predictions in their memory order; empty, (0,), what is not needed"""
        gradients, first, streams = [], 0, grad.shape[1]
        for scale, size, dtype, need in zip(grad, sizes, dtypes, needed, strict=True):
            last = first + streams * blocks(size) * SIGN_BYTES
            if need:
                codes = signs[first:last].view(streams, -1, 1, SIGN_BYTES)
                shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=signs.device)[:, None]
                codes = (codes >> shift & 3).view(streams, -1)[:, :size]
                sign = (codes == 1).to(grad.dtype) - (codes == 2).to(grad.dtype)
                gradients.append((sign * (scale / size)[:, None]).to(dtype))
            else:
                gradients.append(signs.new_empty(0, dtype=dtype))
            first = last
        return gradients


def loss_l1_reference(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """`loss_l1` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    _check(predictions, targets)
    dtype = terms_dtype([*predictions, *targets])
    return torch.stack(
        [
            _difference(prediction, target.detach()).abs().flatten(1).mean(dim=1).to(dtype)
            for prediction, target in zip(predictions, targets, strict=True)
        ]
    )


def loss_l1(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of every pair, per stream, as one op.

    Args:
        predictions: one or more tensors (S, B, ...), none empty; float32, bfloat16 or float16, each its own. If any
            tensor is float64, the reference serves all.
        targets: as many, each of its prediction's shape, in a dtype of its own.

    Returns:
        (P, S): a row a pair, a column a stream; float32 (float64 if any tensor is).

    Differences are taken in float32, sums in float32 with the partial ones merged in a fixed order (C++ in
    float64): equal inputs give equal bits. Pictures (S, B, C, H, W) are read in the order they lie in, also where
    prediction and target differ in it; what is dense in neither order is copied. No gradient reaches the targets.
    The gradient of |0| is 0, and that of NaN, as in PyTorch. Autocast does not change the op. Gradients flow
    once: double backward raises RuntimeError; use `loss_l1_reference` where second derivatives are needed.

    Raises:
        ValueError: shapes, dtypes or devices other than these; DGNET_FAST_IMPL forces a body that cannot serve.
    """
    _check(predictions, targets)
    check_device("loss_l1", predictions[0])
    orders = [is_channels_last(x) for x in predictions]
    return _forward_op(list(predictions), [target.detach() for target in targets], orders)[0]


def _check(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    if len(predictions) == 0 or len(predictions) != len(targets):
        raise ValueError(
            f"predictions and targets must be equally many, at least one; got {len(predictions)} and {len(targets)}"
        )
    first = predictions[0]
    for k, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        if prediction.dim() < 2 or prediction.numel() == 0 or prediction.shape[0] != first.shape[0]:
            raise ValueError(
                f"predictions[{k}] must have shape (S, B, ...), not empty, with the S of all others, "
                f"got {tuple(prediction.shape)}"
            )
        if target.shape != prediction.shape:
            raise ValueError(
                f"targets[{k}] must have its prediction's shape {tuple(prediction.shape)}, got {tuple(target.shape)}"
            )
        for name, x in ((f"predictions[{k}]", prediction), (f"targets[{k}]", target)):
            if x.dtype not in registry.DTYPES:
                allowed = ", ".join(str(dtype) for dtype in registry.DTYPES)
                raise ValueError(f"{name} must have one of the dtypes {allowed}, got {x.dtype}")
            if x.device != first.device:
                raise ValueError(f"{name} must be on predictions[0]'s device {first.device}, got {x.device}")


# ---- the op: schema, bodies, fake, autograd. Lists of dtypes have no place in a schema: they are numbers there.

_DEVICES = tuple(registry.TABLE["loss_l1"])


def _body(device: torch.device, dtypes: Sequence[torch.dtype]):
    widest = torch.float64 if torch.float64 in dtypes else dtypes[0]
    return registry.implementation("loss_l1", device.type, widest)


@torch.library.custom_op("dgnet_fast::loss_l1", mutates_args=(), device_types=_DEVICES)
def _forward_op(
    predictions: list[Tensor], targets: list[Tensor], channels_last: list[bool]
) -> tuple[Tensor, Tensor]:
    _check(predictions, targets)
    body = _body(predictions[0].device, [x.dtype for x in (*predictions, *targets)])
    return body.forward(predictions, targets, channels_last)


@torch.library.custom_op("dgnet_fast::loss_l1_backward", mutates_args=(), device_types=_DEVICES)
def _backward_op(
    grad: Tensor, signs: Tensor, sizes: list[int], dtypes: list[int], needed: list[bool]
) -> list[Tensor]:
    kinds = [registry.DTYPES[k] for k in dtypes]
    return _body(grad.device, [grad.dtype, *kinds]).backward(grad.contiguous(), signs, sizes, kinds, needed)


@_forward_op.register_fake
def _(predictions, targets, channels_last):
    first = predictions[0]
    means = first.new_empty((len(predictions), first.shape[0]), dtype=terms_dtype([*predictions, *targets]))
    size = sum(x.shape[0] * blocks(elements(x)) * SIGN_BYTES for x in predictions)
    return means, first.new_empty(size, dtype=torch.uint8)


@_backward_op.register_fake
def _(grad, signs, sizes, dtypes, needed):
    return [
        grad.new_empty((grad.shape[1], size) if need else 0, dtype=registry.DTYPES[kind])
        for size, kind, need in zip(sizes, dtypes, needed, strict=True)
    ]


def _setup_context(ctx, inputs, output) -> None:
    predictions, _, ctx.channels_last = inputs
    _, signs = output
    ctx.mark_non_differentiable(signs)
    ctx.save_for_backward(signs)
    ctx.shapes = [x.shape for x in predictions]
    ctx.sizes = [elements(x) for x in predictions]
    ctx.dtypes = [registry.DTYPES.index(x.dtype) for x in predictions]


def _backward(ctx, grad, _grad_signs):
    needed, needs_targets, _ = ctx.needs_input_grad
    assert not any(needs_targets)  # they come detached
    (signs,) = ctx.saved_tensors
    gradients = []
    for k, gradient in enumerate(_backward_op(grad, signs, ctx.sizes, ctx.dtypes, needed)):
        shape = ctx.shapes[k]
        if not needed[k]:
            gradient = None
        elif ctx.channels_last[k]:
            streams, batch, channels, height, width = shape
            gradient = gradient.view(streams, batch, height, width, channels).permute(0, 1, 4, 2, 3)
        else:
            gradient = gradient.view(shape)
        gradients.append(gradient)
    return gradients, [None] * len(gradients), None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
_backward_op.register_autograd(once_differentiable("loss_l1"))
