"""The bodies of `loss_l1` other than the reference, as the op calls them: cpp, triton.

Each is a namespace, named as DGNET_FAST_IMPL names it, with the reference's two functions (`ops/loss_l1.py`).
They check nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgnet_fast import _C
from dgnet_fast.ops.launch import ELEMENT_TYPES, address
from dgnet_fast.ops.loss_l1 import SIGN_BYTES, blocks, elements, in_order, is_channels_last


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
    """The pair as the op's `channels_last` says the prediction lies; copies only what is dense in no order."""
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


def _pairs(predictions: list[Tensor], targets: list[Tensor], channels_last: list[bool]) -> list[Pair]:
    return [_pair(*three) for three in zip(predictions, targets, channels_last, strict=True)]


def _signs(predictions: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Room for the signs of all pairs, and each pair's part of it."""
    counts = [x.shape[0] * blocks(elements(x)) * SIGN_BYTES for x in predictions]
    signs = torch.empty(sum(counts), dtype=torch.uint8, device=predictions[0].device)
    return signs, list(signs.split(counts))


class cpp:  # noqa: N801
    """C++ with OpenMP, for CPU tensors, one pair after the other: csrc/loss_l1.cpp.

    Forward and backward of a step's five pairs at batch 8 (one thread, AVX2, medians): predictions in channels_last
    order, as the networks make them, 14 ms in float32 and 10 in bfloat16 where the compiled reference takes 86 and
    92; contiguous ones 13 and 7.6 to 12.5 and 7.1, no gain.
    """

    @staticmethod
    def forward(
        predictions: list[Tensor], targets: list[Tensor], channels_last: list[bool]
    ) -> tuple[Tensor, Tensor]:
        means = torch.empty((len(predictions), predictions[0].shape[0]), dtype=torch.float32)
        signs, parts = _signs(predictions)
        for pair, mean, part in zip(_pairs(predictions, targets, channels_last), means, parts, strict=True):
            x, target = pair.prediction, pair.target
            kinds = (pair.crossing, ELEMENT_TYPES[x.dtype], ELEMENT_TYPES[target.dtype])
            sizes = (*x.shape, pair.channels, pair.pixels, *kinds)
            _C.loss_l1_forward(sizes, *map(address, (x, target, mean, part)))
        return means, signs

    @staticmethod
    def backward(
        grad: Tensor, signs: Tensor, sizes: list[int], dtypes: list[torch.dtype], needed: list[bool]
    ) -> list[Tensor]:
        streams = grad.shape[1]
        parts = signs.split([streams * blocks(size) * SIGN_BYTES for size in sizes])
        gradients = []
        for scale, part, size, dtype, need in zip(grad, parts, sizes, dtypes, needed, strict=True):
            gradient = torch.empty((streams, size) if need else 0, dtype=dtype)
            if need:
                where = map(address, (scale, part, gradient))
                _C.loss_l1_backward(streams, size, ELEMENT_TYPES[dtype], *where)
            gradients.append(gradient)
        return gradients


class triton:  # noqa: N801
    """Triton, for CUDA tensors, and for CPU tensors under its interpreter: kernels/loss_l1.py.

    Bytes from and to memory: every prediction and target once and a quarter of a byte an element forward, that
    quarter and every needed gradient once backward. A step's three picture pairs (bfloat16 against float32, 1.6 M
    elements each) and the structure pair (bfloat16, 4.2 M) are 47 MB forward and 20 MB backward, against 108 MB
    if the backward read them again: 22 for 36 µs at an H100's 3 TB/s (predicted, not measured).
    """

    @staticmethod
    def forward(
        predictions: list[Tensor], targets: list[Tensor], channels_last: list[bool]
    ) -> tuple[Tensor, Tensor]:
        from dgnet_fast.kernels import loss_l1 as kernels  # imports triton: only where it serves

        signs, parts = _signs(predictions)
        with torch.cuda.device_of(signs):
            return kernels.forward(_pairs(predictions, targets, channels_last), parts), signs

    @staticmethod
    def backward(
        grad: Tensor, signs: Tensor, sizes: list[int], dtypes: list[torch.dtype], needed: list[bool]
    ) -> list[Tensor]:
        from dgnet_fast.kernels import loss_l1 as kernels

        parts = signs.split([grad.shape[1] * blocks(size) * SIGN_BYTES for size in sizes])
        gradients = [
            torch.empty((grad.shape[1], size) if need else 0, dtype=dtype, device=grad.device)
            for size, dtype, need in zip(sizes, dtypes, needed, strict=True)
        ]
        with torch.cuda.device_of(grad):
            kernels.backward(grad, parts, gradients)
        return gradients
