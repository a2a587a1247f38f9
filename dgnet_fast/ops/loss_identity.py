"""loss_identity: identity losses of many heads and groups of rows, per stream, as one op.

    term[k, s] = mean over stream s of -log p[label]             where targets[k] are labels
    term[k, s] = mean over stream s of sum q (log q - log p)     where targets[k] are probabilities q

with p = softmax(logits[k]). One log-softmax serves a term's value and its gradient: the forward keeps each row's
log of the sum of exponentials and sum of q, and the backward is p * sum q - q (or p minus one at the label) from
them. DG-Net eqs. 4, 7 and the teacher's terms of sec. 3.2.

The reference, the public function, what the op allocates and checks, its autograd, and the calls into its bodies;
registry.py says who serves what.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import check_device, choosing, widest
from dgnet_fast.ops.bodies import Arguments, triton_body
from dgnet_fast.ops.define import define

LABELS = torch.int64


def _rows(target: Tensor) -> Tensor:
    """Turns (S, B) into (S·B,), and (S, B, ids) into (S·B, ids)."""
    return target.flatten(0, 1)


class reference:
    """Plain PyTorch: what every body must compute."""

    @staticmethod
    def terms(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Computes (T, S) by PyTorch's own losses, after one log-softmax over the rows of all terms."""
        dtype = widest([*logits, *targets])
        together = F.log_softmax(torch.cat([x.to(dtype) for x in logits]), dim=1)
        terms = []
        for log_p, target in zip(together.split([len(x) for x in logits]), targets, strict=True):
            if target.dtype == LABELS:
                loss = F.nll_loss(log_p, _rows(target), reduction="none").view_as(target)
                terms.append(loss[None].mean(dim=(0, 2)))  # as losses.cross_entropy of one head, to the bit
            else:
                loss = F.kl_div(log_p, _rows(target).to(dtype), reduction="none").sum(dim=1)
                terms.append(loss.view(target.shape[:2]).mean(dim=1))
        return torch.stack(terms)

    @staticmethod
    def forward(logits: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns terms (T, S) and kept (2, rows of all terms).

        Of each row kept holds the log of the sum of exponentials and the sum of the target.
        """
        dtype = widest([*logits, *targets])
        exponents = [x.to(dtype).logsumexp(dim=1) for x in logits]
        sums = [
            torch.ones_like(e) if t.dtype == LABELS else _rows(t).to(dtype).sum(dim=1)
            for e, t in zip(exponents, targets, strict=True)
        ]
        return reference.terms(logits, targets), torch.stack([torch.cat(exponents), torch.cat(sums)])

    @staticmethod
    def backward(
        grad: Tensor, kept: Tensor, logits: list[Tensor], targets: list[Tensor], needed: list[bool]
    ) -> list[Tensor]:
        """Returns the gradients of the logits; what is not needed is empty, (0,)."""
        gradients = []
        for k, (scale, part) in enumerate(
            zip(grad, kept.split([len(x) for x in logits], dim=1), strict=True)
        ):
            x, target = logits[k], targets[k]
            if not needed[k]:
                gradients.append(x.new_empty(0))
                continue
            exponent, total = part[:, :, None]
            gradient = (x.to(kept.dtype) - exponent).exp() * total
            if target.dtype == LABELS:
                gradient.scatter_add_(1, _rows(target)[:, None], gradient.new_full((len(x), 1), -1))
            else:
                gradient -= _rows(target)
            streams, batch = target.shape[:2]
            gradient = gradient.view(streams, batch, -1) * (scale / batch)[:, None, None]
            gradients.append(gradient.flatten(0, 1).to(x.dtype))
        return gradients


aten = reference


def loss_identity_reference(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """`loss_identity` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    _check(logits, targets)
    return reference.terms(logits, [target.detach() for target in targets])


def loss_identity(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Cross entropy or Kullback-Leibler divergence of every head's logits, per stream, as one op.

    Args:
        logits: one or more tensors (S·B, ids), stream after stream, none empty, of the same ids; float32, bfloat16
            or float16, each its own. If any tensor is float64, the reference serves all.
        targets: as many; labels (S, B), int64, from 0 to ids - 1, or probabilities (S, B, ids) in any of those
            dtypes, 0 where they like. S is the same in all; B need not be.

    Returns:
        (T, S): a row a term, a column a stream; float32 (float64 if any tensor is).

    Everything is computed in float32 and in a fixed order: equal inputs give equal bits. No gradient reaches the
    targets. On a GPU a label outside makes its term NaN; on a CPU it raises. Autocast does not change the op.
    Gradients flow once: double backward raises RuntimeError; use `loss_identity_reference` where second derivatives
    are needed.

    Raises:
        ValueError: shapes, dtypes or devices other than these; DGNET_FAST_IMPL forces a body that cannot serve.
    """
    _check(logits, targets)
    check_device("loss_identity", logits[0])
    return _forward_op(list(logits), [target.detach() for target in targets])[0]


def _check(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    if len(logits) == 0 or len(logits) != len(targets):
        raise ValueError(
            f"logits and targets must be equally many, at least one; got {len(logits)} and {len(targets)}"
        )
    allowed = ", ".join(str(dtype) for dtype in registry.DTYPES)
    for k, (x, target) in enumerate(zip(logits, targets, strict=True)):
        if x.dim() != 2 or x.numel() == 0 or x.shape[1] != logits[0].shape[-1]:
            raise ValueError(
                f"logits[{k}] must have shape (S·B, ids), not empty, with the ids of all others, "
                f"got {tuple(x.shape)}"
            )
        if x.dtype not in registry.DTYPES:
            raise ValueError(f"logits[{k}] must have one of the dtypes {allowed}, got {x.dtype}")
        if target.dtype not in (LABELS, *registry.DTYPES):
            raise ValueError(
                f"targets[{k}] must have one of the dtypes {LABELS}, {allowed}, got {target.dtype}"
            )
        ids = () if target.dtype == LABELS else x.shape[1:]
        if (
            target.dim() != 2 + len(ids)
            or target.shape[:1] != targets[0].shape[:1]
            or target.shape[0] * target.shape[1] != len(x)
            or target.shape[2:] != ids
        ):
            raise ValueError(
                f"targets[{k}] must be {LABELS} labels (S, B) or probabilities (S, B, ids) for the "
                f"{tuple(x.shape)} logits and the S of all others, got {target.dtype} of {tuple(target.shape)}"
            )
        for name, tensor in ((f"logits[{k}]", x), (f"targets[{k}]", target)):
            if tensor.device != logits[0].device:
                raise ValueError(
                    f"{name} must be on logits[0]'s device {logits[0].device}, got {tensor.device}"
                )


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    first, dtype = a.logits[0], widest([*a.logits, *a.targets])
    return {
        "terms": first.new_empty((len(a.logits), a.targets[0].shape[0]), dtype=dtype),
        "kept": first.new_empty((2, sum(len(x) for x in a.logits)), dtype=dtype),
    }


def _gradients(a: Arguments) -> dict[str, list[Tensor]]:
    some = zip(a.logits, a.needed, strict=True)
    return {"gradients": [x.new_empty(x.shape if need else 0) for x, need in some]}


def _prepare(a: Arguments) -> Tensor:
    _check(a.logits, a.targets)
    a.logits, a.targets = [x.contiguous() for x in a.logits], [x.contiguous() for x in a.targets]
    return choosing([*a.logits, *a.targets])


def _prepare_backward(a: Arguments) -> Tensor:
    a.logits, a.targets = [x.contiguous() for x in a.logits], [x.contiguous() for x in a.targets]
    a.grad = a.grad.contiguous()
    return choosing([*a.logits, *a.targets])


def _setup_context(ctx, a: Arguments, output) -> None:
    _, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.count = len(a.logits)
    ctx.save_for_backward(kept, *a.logits, *a.targets)


def _backward(ctx, grad: Tensor, _grad_kept) -> dict[str, list[Tensor | None]]:
    needed, needs_targets = ctx.needs_input_grad
    assert not any(needs_targets)  # they come detached
    kept, *saved = ctx.saved_tensors
    gradients = _backward_op(grad, kept, saved[: ctx.count], saved[ctx.count :], needed)
    gradients = [g if need else None for g, need in zip(gradients, needed, strict=True)]
    return {"logits": gradients, "targets": [None] * ctx.count}


_forward_op, _backward_op = define(
    "loss_identity",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
)

#: One launch a pass. Bytes: logits and targets once forward, both again and the gradients once backward; a step's six
#: terms (16 rows of 751, one with probabilities) are 0.2 and 0.3 MB in bfloat16, so the launch is the cost: a few µs
#: where the compiled reference takes a kernel or two for each term (predicted, not measured).
triton = triton_body("loss_identity")
