"""loss_adversarial: an adversarial loss over the score maps of all scales, per stream, as one op.

    loss[s] = weight * sum over maps k of mean over stream s of f(scores[k])

    lsgan: f(x) = (x - 1)² for maps that should score as real, x² for the others
    nsgan: f(x) = softplus(-x) and softplus(x)
    wgan:  f(x) = -x and x; besides, DRIFT times the sum (not the mean) of x²

D's loss takes fake and real maps, the generator's the fake ones as if they were real (DG-Net eq. 6).

The reference, the public function, what the op allocates and checks, its autograd, and the calls into its bodies;
registry.py says who serves what.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import check_device, choosing, widest
from dgnet_fast.ops.bodies import Arguments, triton_body
from dgnet_fast.ops.define import define

KINDS = ("lsgan", "nsgan", "wgan")
DRIFT = 0.001
"""Weight of the squared scores in the Wasserstein losses (keeps D from drifting)."""


class reference:
    """Plain PyTorch: what every body must compute."""

    @staticmethod
    def forward(scores: list[Tensor], real: list[bool], kind: str, weight: float) -> Tensor:
        """Returns the loss (S,)."""
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
        assert isinstance(total, Tensor)  # there is a score
        return weight * total

    @staticmethod
    def backward(
        grad: Tensor, scores: list[Tensor], real: list[bool], kind: str, weight: float, needed: list[bool]
    ) -> list[Tensor]:
        """Returns the gradients of the scores; what is not needed is empty, (0,)."""
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


aten = reference


def loss_adversarial_reference(
    scores: Sequence[Tensor], real: Sequence[bool], *, kind: str, weight: float = 1.0
) -> Tensor:
    """`loss_adversarial` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    _check(scores, real, kind)
    return reference.forward(list(scores), list(real), kind, weight)


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


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    return {"loss": a.scores[0].new_empty(a.scores[0].shape[:1], dtype=widest(a.scores))}


def _gradients(a: Arguments) -> dict[str, list[Tensor]]:
    some = zip(a.scores, a.needed, strict=True)
    return {"gradients": [x.new_empty(x.shape if need else 0) for x, need in some]}


def _prepare(a: Arguments) -> Tensor:
    _check(a.scores, a.real, a.kind)
    a.scores, a.drift = [x.contiguous() for x in a.scores], DRIFT
    return choosing(a.scores)


def _prepare_backward(a: Arguments) -> Tensor:
    a.scores, a.drift = [x.contiguous() for x in a.scores], DRIFT
    a.grad = a.grad.contiguous()
    return choosing(a.scores)


def _setup_context(ctx, a: Arguments, output: Tensor) -> None:
    ctx.real, ctx.kind, ctx.weight = a.real, a.kind, a.weight
    ctx.save_for_backward(*a.scores)


def _backward(ctx, grad: Tensor) -> dict[str, list[Tensor | None]]:
    needed, *_ = ctx.needs_input_grad
    gradients = _backward_op(grad, list(ctx.saved_tensors), ctx.real, ctx.kind, ctx.weight, needed)
    return {"scores": [g if need else None for g, need in zip(gradients, needed, strict=True)]}


_forward_op, _backward_op = define(
    "loss_adversarial",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
)

#: One launch a pass. Bytes: every score once forward, once more and its gradient once backward; D's six maps at batch 8
#: are 0.2 and 0.4 MB in bfloat16, so the launch is the cost: a few µs where the compiled reference takes a reduction
#: for each map (predicted, not measured).
triton = triton_body("loss_adversarial")
