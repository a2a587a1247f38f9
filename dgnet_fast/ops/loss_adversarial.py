"""loss_adversarial: an adversarial loss over the score maps of all scales, per stream, as one op.

    loss[s] = weight * sum over maps k of mean over stream s of f(scores[k])

    lsgan: f(x) = (x - 1)² for maps that should score as real, x² for the others
    nsgan: f(x) = softplus(-x) and softplus(x)
    wgan:  f(x) = -x and x; besides, DRIFT times the sum (not the mean) of x²

D's loss takes fake and real maps, the generator's the fake ones as if they were real (DG-Net eq. 6).

The reference, the schema with its fake and its autograd, the public function; the Triton body is in
loss_adversarial_bodies.py, who serves what in registry.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import check_device, once_differentiable

KINDS = ("lsgan", "nsgan", "wgan")
DRIFT = 0.001
"""Weight of the squared scores in the Wasserstein losses (keeps D from drifting)."""


def widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 if a tensor is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


class reference:  # noqa: N801  (a namespace, named as DGNET_FAST_IMPL names it)
    """Plain PyTorch: what every body must compute."""

    @staticmethod
    def forward(scores: Sequence[Tensor], real: Sequence[bool], kind: str, weight: float) -> Tensor:
        total, dtype = 0, widest(scores)
        for score, as_real in zip(scores, real, strict=True):
            x = score.to(dtype).flatten(1)
            if kind == "lsgan":
                loss = (x - 1 if as_real else x).square().mean(dim=1)
            elif kind == "nsgan":
                loss = F.softplus(-x if as_real else x).mean(dim=1)
            else:
                loss = (-x if as_real else x).mean(dim=1) + DRIFT * x.square().sum(dim=1)
            total = total + loss
        return weight * total

    @staticmethod
    def backward(
        grad: Tensor, scores: list[Tensor], real: list[bool], kind: str, weight: float, needed: list[bool]
    ) -> list[Tensor]:
        """Gradients of the scores; empty, (0,), what is not needed"""
        gradients = []
        for score, as_real, need in zip(scores, real, needed, strict=True):
            if not need:
                gradients.append(score.new_empty(0))
                continue
            x, sign = score.to(grad.dtype).flatten(1), -1 if as_real else 1
            if kind == "lsgan":
                slope = 2 * (x - 1 if as_real else x) / x.shape[1]
            elif kind == "nsgan":
                slope = sign * (sign * x).sigmoid() / x.shape[1]
            else:
                slope = sign / x.shape[1] + 2 * DRIFT * x
            gradients.append((slope * (weight * grad)[:, None]).view(score.shape).to(score.dtype))
        return gradients


def loss_adversarial_reference(
    scores: Sequence[Tensor], real: Sequence[bool], *, kind: str, weight: float = 1.0
) -> Tensor:
    """`loss_adversarial` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    _check(scores, real, kind)
    return reference.forward(scores, real, kind, weight)


def loss_adversarial(
    scores: Sequence[Tensor], real: Sequence[bool], *, kind: str, weight: float = 1.0
) -> Tensor:
    """Sum over score maps of an adversarial loss, per stream, as one op.

    Args:
        scores: one or more maps (S, B, ...), none empty; float32, bfloat16 or float16, each its own. If any is
            float64, the reference serves all.
        real: for each map, whether it should score as real.
        kind: lsgan, nsgan or wgan.
        weight: factor of the whole.

    Returns:
        (S,), float32 (float64 if any map is).

    Everything is computed in float32 and in a fixed order: equal inputs give equal bits. Autocast does not change
    the op. Gradients flow once: double backward raises RuntimeError; use `loss_adversarial_reference` where second
    derivatives are needed.

    Raises:
        ValueError: shapes, dtypes, devices or kinds other than these; DGNET_FAST_IMPL forces a body that cannot
            serve.
    """
    _check(scores, real, kind)
    check_device("loss_adversarial", scores[0])
    return _forward_op(list(scores), [bool(one) for one in real], kind, float(weight))


def _check(scores: Sequence[Tensor], real: Sequence[bool], kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}")
    if len(scores) == 0 or len(scores) != len(real):
        raise ValueError(
            f"scores and real must be equally many, at least one; got {len(scores)} and {len(real)}"
        )
    first = scores[0]
    for k, x in enumerate(scores):
        if x.dim() < 2 or x.numel() == 0 or x.shape[0] != first.shape[0]:
            raise ValueError(
                f"scores[{k}] must have shape (S, B, ...), not empty, with the S of all others, got {tuple(x.shape)}"
            )
        if x.dtype not in registry.DTYPES:
            allowed = ", ".join(str(dtype) for dtype in registry.DTYPES)
            raise ValueError(f"scores[{k}] must have one of the dtypes {allowed}, got {x.dtype}")
        if x.device != first.device:
            raise ValueError(f"scores[{k}] must be on scores[0]'s device {first.device}, got {x.device}")


# ---- the op: schema, bodies, fake, autograd

_DEVICES = tuple(registry.TABLE["loss_adversarial"])


def _body(scores: Sequence[Tensor]):
    wide = widest(scores) == torch.float64
    dtype = torch.float64 if wide else scores[0].dtype
    return registry.implementation("loss_adversarial", scores[0].device.type, dtype)


@torch.library.custom_op("dgnet_fast::loss_adversarial", mutates_args=(), device_types=_DEVICES)
def _forward_op(scores: list[Tensor], real: list[bool], kind: str, weight: float) -> Tensor:
    _check(scores, real, kind)
    return _body(scores).forward([x.contiguous() for x in scores], real, kind, weight)


@torch.library.custom_op("dgnet_fast::loss_adversarial_backward", mutates_args=(), device_types=_DEVICES)
def _backward_op(
    grad: Tensor, scores: list[Tensor], real: list[bool], kind: str, weight: float, needed: list[bool]
) -> list[Tensor]:
    scores = [x.contiguous() for x in scores]
    return _body(scores).backward(grad.contiguous(), scores, real, kind, weight, needed)


@_forward_op.register_fake
def _(scores, real, kind, weight):
    return scores[0].new_empty(scores[0].shape[:1], dtype=widest(scores))


@_backward_op.register_fake
def _(grad, scores, real, kind, weight, needed):
    return [x.new_empty(x.shape if need else 0) for x, need in zip(scores, needed, strict=True)]


def _setup_context(ctx, inputs, output) -> None:
    scores, ctx.real, ctx.kind, ctx.weight = inputs
    ctx.save_for_backward(*scores)


def _backward(ctx, grad):
    needed, *_ = ctx.needs_input_grad
    gradients = _backward_op(grad, list(ctx.saved_tensors), ctx.real, ctx.kind, ctx.weight, needed)
    gradients = [g if need else None for g, need in zip(gradients, needed, strict=True)]
    return gradients, None, None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
_backward_op.register_autograd(once_differentiable("loss_adversarial"))
