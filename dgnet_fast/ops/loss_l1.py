"""loss_l1: mean absolute differences of many (prediction, target) pairs, per stream, as one op.

    term[k, s] = mean over stream s of |predictions[k] - targets[k]|

The reconstruction terms of DG-Net's objective (eqs. 1, 3, 5 and the cycle). The forward leaves the sign of every
difference in two bits, and the backward needs nothing else: with bfloat16 predictions and float32 targets 6.25
and 2.25 bytes an element, where reading both again would take 6 and 8, and neither input is kept for it.

The reference, the public function, what the op allocates and checks, its autograd, and the calls into its bodies;
registry.py says who serves what.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import check_device, choosing, widest
from dgnet_fast.ops.bodies import ELEMENT_TYPES, Arguments, Body, address, triton_body
from dgnet_fast.ops.define import define
from dgnet_fast.ops.native import _C

#: Signs are stored by blocks of this many elements of a stream, in the prediction's memory order: byte j of a
#: block holds those of elements j, j + BLOCK / 4, … from its lowest bits up; 1 where prediction > target, 2 where
#: prediction < target, else 0. Keep in step with csrc/loss_l1.h and kernels/loss_l1.py.
BLOCK = 1024
SIGN_BYTES = BLOCK // 4


def blocks(elements: int) -> int:
    """Counts the blocks of signs in a stream of so many elements."""
    return -(-elements // BLOCK)


def elements(x: Tensor) -> int:
    """Counts the elements of a stream of x (S, ...)."""
    return x.numel() // x.shape[0]


def is_channels_last(x: Tensor) -> bool:
    """Whether x (S, B, C, H, W) is dense in (S, B, H, W, C) order, and not in its own as well."""
    return x.dim() == 5 and not x.is_contiguous() and x.permute(0, 1, 3, 4, 2).is_contiguous()


def in_order(x: Tensor, channels_last: bool) -> Tensor:
    """Flattens x (S, ...) to (S, elements) in memory order: that of pixels where channels_last, else its own."""
    return (x.permute(0, 1, 3, 4, 2) if channels_last else x).flatten(1).contiguous()


def _difference(prediction: Tensor, target: Tensor) -> Tensor:
    dtype = widest((prediction, target))
    return prediction.to(dtype) - target.to(dtype)


class reference:
    """Plain PyTorch: what every body must compute."""

    @staticmethod
    def forward(
        predictions: list[Tensor], targets: list[Tensor], channels_last: list[bool]
    ) -> tuple[Tensor, Tensor]:
        """Returns means (P, S), and the signs of all pairs as bytes: pair after pair, in a pair stream after stream."""
        means, signs = [], []
        for prediction, target, order in zip(predictions, targets, channels_last, strict=True):
            difference = _difference(prediction, target)
            means.append(difference.abs().flatten(1).mean(dim=1))
            codes = (difference > 0) + 2 * (difference < 0).to(torch.uint8)
            codes = F.pad(in_order(codes, order), (0, -elements(prediction) % BLOCK))
            codes = codes.view(-1, 4, SIGN_BYTES)
            signs.append(codes[:, 0] + 4 * codes[:, 1] + 16 * codes[:, 2] + 64 * codes[:, 3])
        dtype = widest([*predictions, *targets])
        return torch.stack([mean.to(dtype) for mean in means]), torch.cat(signs).flatten()

    @staticmethod
    def backward(
        grad: Tensor, signs: Tensor, sizes: list[int], dtypes: list[int], needed: list[bool]
    ) -> list[Tensor]:
        """Returns the gradients (S, elements) of the predictions in their memory order.

        What is not needed is empty, (0,).
        dtypes are the places of the predictions' dtypes in `registry.DTYPES`: a schema has no lists of dtypes.
        """
        gradients, first, streams = [], 0, grad.shape[1]
        for scale, size, kind, need in zip(grad, sizes, dtypes, needed, strict=True):
            last, dtype = first + streams * blocks(size) * SIGN_BYTES, registry.DTYPES[kind]
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
    dtype = widest([*predictions, *targets])
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


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    first, dtype = a.predictions[0], widest([*a.predictions, *a.targets])
    size = sum(x.shape[0] * blocks(elements(x)) * SIGN_BYTES for x in a.predictions)
    return {
        "means": first.new_empty((len(a.predictions), first.shape[0]), dtype=dtype),
        "signs": first.new_empty(size, dtype=torch.uint8),
    }


def _gradients(a: Arguments) -> dict[str, list[Tensor]]:
    gradients = [
        a.grad.new_empty((a.grad.shape[1], size) if need else 0, dtype=registry.DTYPES[kind])
        for size, kind, need in zip(a.sizes, a.dtypes, a.needed, strict=True)
    ]
    return {"gradients": gradients}


def _prepare(a: Arguments) -> Tensor:
    _check(a.predictions, a.targets)
    return choosing([*a.predictions, *a.targets])


def _prepare_backward(a: Arguments) -> Tensor:
    a.grad = a.grad.contiguous()
    return a.grad  # of float64 where a prediction or a target is


def _setup_context(ctx, a: Arguments, output) -> None:
    _, signs = output
    ctx.mark_non_differentiable(signs)
    ctx.save_for_backward(signs)
    ctx.channels_last = a.channels_last
    ctx.shapes = [x.shape for x in a.predictions]
    ctx.sizes = [elements(x) for x in a.predictions]
    ctx.dtypes = [registry.DTYPES.index(x.dtype) for x in a.predictions]


def _backward(ctx, grad: Tensor, _grad_signs) -> dict[str, list[Tensor | None]]:
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
    return {"predictions": gradients, "targets": [None] * len(gradients)}


_forward_op, _backward_op = define(
    "loss_l1",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
)

# ---- its bodies


class Pair(NamedTuple):
    """Prediction and target, each dense in an order of its own.

    crossing: 0 where the orders agree; 1 where the prediction's is of pixels and the target's of planes, 2 the
    other way round (csrc/loss_l1.h).
    """

    prediction: Tensor
    target: Tensor
    channels: int
    pixels: int
    crossing: int


def _pair(prediction: Tensor, target: Tensor, channels_last: bool) -> Pair:
    """Makes the pair, the prediction as the op's `channels_last` says it lies; copies only what is dense in no order."""
    target_channels_last = is_channels_last(target)
    channels, pixels, crossing = 1, 1, 0
    if channels_last != target_channels_last:
        channels, pixels = prediction.shape[2], prediction.shape[3] * prediction.shape[4]
        crossing = 1 if channels_last else 2
    return Pair(
        in_order(prediction, channels_last),
        in_order(target, target_channels_last),
        channels,
        pixels,
        crossing,
    )


def _in_pairs(a: Arguments) -> Arguments:
    """Adds `pairs`, and `parts`, each pair's part of the signs."""
    given = zip(a.predictions, a.targets, a.channels_last, strict=True)
    a.pairs = [_pair(*three) for three in given]
    a.parts = a.signs.split([x.shape[0] * blocks(elements(x)) * SIGN_BYTES for x in a.predictions])
    return a


def _in_parts(a: Arguments) -> Arguments:
    """Adds `parts`, each pair's part of the signs."""
    a.parts = a.signs.split([a.grad.shape[1] * blocks(size) * SIGN_BYTES for size in a.sizes])
    return a


def _fill_forward(a: Arguments) -> None:
    _in_pairs(a)
    for pair, mean, part in zip(a.pairs, a.means, a.parts, strict=True):
        x, target = pair.prediction, pair.target
        kinds = (pair.crossing, ELEMENT_TYPES[x.dtype], ELEMENT_TYPES[target.dtype])
        where = {
            "prediction": address(x),
            "target": address(target),
            "means": address(mean),
            "signs": address(part),
        }
        _C.loss_l1_forward(sizes=(*x.shape, pair.channels, pair.pixels, *kinds), **where)


def _fill_backward(a: Arguments) -> None:
    _in_parts(a)
    for scale, part, size, gradient in zip(a.grad, a.parts, a.sizes, a.gradients, strict=True):
        if gradient.numel() == 0:
            continue
        where = {"grad": address(scale), "signs": address(part), "grad_prediction": address(gradient)}
        element = ELEMENT_TYPES[gradient.dtype]
        _C.loss_l1_backward(streams=a.grad.shape[1], elements=size, element=element, **where)


#: C++ with OpenMP, for CPU tensors, one pair after the other: csrc/loss_l1.cpp.
#:
#: Forward and backward of a step's five pairs at batch 8 (one thread, AVX2, medians): predictions in channels_last
#: order, as the networks make them, 14 ms in float32 and 10 in bfloat16 where the compiled reference takes 86 and
#: 92; contiguous ones 13 and 7.6 to 12.5 and 7.1, no gain.
cpp = Body(_fill_forward, _fill_backward)

_launches = triton_body("loss_l1")

#: Bytes from and to memory: every prediction and target once and a quarter of a byte an element forward, that quarter
#: and every needed gradient once backward. A step's three picture pairs (bfloat16 against float32, 1.6 M elements each)
#: and the structure pair (bfloat16, 4.2 M) are 47 MB forward and 20 MB backward, against 108 MB if the backward read
#: them again: 22 for 36 µs at an H100's 3 TB/s (predicted, not measured).
triton = Body(lambda a: _launches.forward(_in_pairs(a)), lambda a: _launches.backward(_in_parts(a)))
