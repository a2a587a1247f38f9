"""The terms of the objective: pure functions of tensors, no state and no host synchronisation.

Terms that exist once per stream return a vector of S values, one per stream (S is 2: a and b). Pictures and
codes come with the stream as first dimension: (S, B, ...).

`l1_terms`, `identity_terms`, `discriminator_term` and `generator_term` take all that a part of the step has at once and are
fused ops where those win, else plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast import ops
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.ops.input_alone import InputAlone

Pairs = Sequence[tuple[Tensor, Tensor]]


def wide(x: Tensor) -> Tensor:
    """At least float32: every loss is computed there, whatever precision the networks ran in."""
    return x if x.dtype == torch.float64 else x.float()


def l1_terms(pairs: Pairs) -> Tensor:
    """(P, S): mean absolute difference per stream of every (prediction, target), all in one pass (`ops.loss_l1`); no
    gradient reaches the targets.
    """
    predictions, targets = zip(*pairs, strict=True) if pairs else ((), ())
    return ops.loss_l1(predictions, targets)


def deviation_of(codes: Tensor) -> Tensor:
    """Standard deviation (4·id_dim,) of codes (N, 4·id_dim), at least a tenth of its mean: some entries hardly vary."""
    deviation = codes.std(dim=0)
    return deviation.clamp(min=0.1 * deviation.mean())


def code_error(found: Tensor, wanted: Tensor, deviation: Tensor) -> Tensor:
    """Mean squared difference of codes (S, B, 4·id_dim) per stream, (S,), in standard deviations of codes (4·id_dim,)."""
    return (wide(found - wanted) / deviation).square().flatten(1).mean(dim=1)


def cross_entropy(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Identity loss per stream, averaged over heads: logits (S·B, ids) each, labels (S, B) → (S,)."""
    terms = [F.cross_entropy(wide(one), labels.flatten(), reduction="none").view_as(labels) for one in logits]
    return torch.stack(terms).mean(dim=(0, 2))


def smoothed_cross_entropy(logits: Sequence[Tensor], labels: Tensor, smoothing: float) -> Tensor:
    """`cross_entropy` with labels of 1 - smoothing, and smoothing spread over all identities."""
    if not smoothing:
        return cross_entropy(logits, labels)
    terms = [
        F.cross_entropy(wide(one), labels.flatten(), reduction="none", label_smoothing=smoothing).view_as(
            labels
        )
        for one in logits
    ]
    return torch.stack(terms).mean(dim=(0, 2))


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The batch-hard triplet loss of Hermans et al. 2017 (eq. 5): features (N, D), labels (N,) → ().

    For each picture the farthest one of its identity and the nearest one of another, in Euclidean distance:
    max(0, margin + d_positive - d_negative), or log(1 + exp(d_positive - d_negative)) if the margin is 0. Mean over the
    pictures that have both.
    """
    x = wide(features)
    squares = x.square().sum(dim=1)
    distance = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=1e-12).sqrt()
    same = labels[:, None] == labels
    other_view = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = distance.masked_fill(~other_view, -torch.inf).amax(dim=1)
    negative = distance.masked_fill(same, torch.inf).amin(dim=1)
    usable = torch.isfinite(positive) & torch.isfinite(negative)
    gap = torch.where(usable, positive - negative, 0.0)
    loss = F.softplus(gap) if margin == 0 else (gap + margin).clamp(min=0)
    return (loss * usable).sum() / usable.sum().clamp(min=1)


def soft_label_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target ‖ softmax(logits)) per stream: logits (S·B, ids), target (S, B, ids) → (S,), sum over ids,
    mean over B.
    """
    divergence = F.kl_div(F.log_softmax(wide(logits), dim=1), target.flatten(0, 1), reduction="none")
    return divergence.sum(dim=1).view(target.shape[:2]).mean(dim=1)


def identity_terms(pairs: Pairs) -> Tensor:
    """(T, S): for every (logits (S·B, ids), target) the `cross_entropy` of labels (S, B) or the
    `soft_label_divergence` of probabilities (S, B, ids), after one log-softmax.

    One op on a GPU. On a CPU plain PyTorch, which torch.compile makes part of its graph: six terms of 16 x 751 in one call
    took 1.0 ms forward and backward that way, and 3.0 ms as an op of PyTorch's own functions (one thread).
    """
    logits, targets = zip(*pairs, strict=True) if pairs else ((), ())
    return (ops.loss_identity if _fused(logits + targets) else ops.loss_identity_reference)(logits, targets)


def mean_identity_terms(heads: Mapping[str, Pairs]) -> dict[str, Tensor]:
    """name → (S,): the mean over a name's heads of `identity_terms`, all names in one pass."""
    terms = identity_terms([pair for pairs in heads.values() for pair in pairs])
    counts = [len(pairs) for pairs in heads.values()]
    return {
        name: part.mean(dim=0) if len(part) > 1 else part[0]
        for name, part in zip(heads, terms.split(counts), strict=True)
    }


def discriminator_term(fake: Sequence[Tensor], real: Sequence[Tensor], kind: str) -> Tensor:
    """D's adversarial loss per stream, summed over scales; every score map is (S, B, 1, h, w).

    One op on a GPU. On a CPU plain PyTorch: compiled, fake and real maps in one call, it takes 0.7 ms forward and
    backward at batch 8, as an op of PyTorch's own functions 1.8 (one thread).
    """
    scores = [*fake, *real]
    return _adversarial(scores)(scores, [False] * len(fake) + [True] * len(real), kind=kind)


def generator_term(fake: Sequence[Tensor], kind: str, *, weight: float | None = None) -> Tensor:
    """The generator's adversarial loss per stream, as `discriminator_term`. Without ``weight`` lsgan's is twice as large,
    as in the public code of DG-Net.
    """
    if weight is None:
        weight = 2.0 if kind == "lsgan" else 1.0
    return _adversarial(fake)(fake, [True] * len(fake), kind=kind, weight=weight)


def _adversarial(scores: Sequence[Tensor]) -> Callable[..., Tensor]:
    return ops.loss_adversarial if _fused(scores) else ops.loss_adversarial_reference


def _fused(tensors: Sequence[Tensor]) -> bool:
    """Whether small terms are worth an op: on a GPU, where it saves launches; float64 keeps the plain form's bits."""
    return all(x.device.type == "cuda" and x.dtype != torch.float64 for x in tensors)


def real_scores_and_penalty(discriminator: Discriminator, real: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """D's scores of real pictures (N, 3, H, W), and per sample ‖∂ sum D(real) / ∂ real‖² summed over scales,
    (N,).

    For ``nsgan`` the gradient is that of the score after the sigmoid. One scale at a time: no pass through the nets of
    other scales. Compiled, it is written with ``torch.func.vjp``, so that torch.compile takes the double backward in one
    graph; else by autograd, which the fused convolutions and BatchNorm's running statistics in D want.
    """
    scores, penalty = [], 0
    for k in range(len(discriminator.scales)):

        def penalised(x: Tensor, k: int = k) -> tuple[Tensor, Tensor]:
            score = discriminator.score(discriminator.shrink(x, k), k)
            return (score.sigmoid() if discriminator.kind == "nsgan" else score), score

        if torch.compiler.is_compiling():
            # three with `has_aux`, two without: the annotation does not say which
            output, pullback, score = torch.func.vjp(  # pyright: ignore[reportAssignmentType]
                penalised, real, has_aux=True
            )
            (gradient,) = pullback(torch.ones_like(output))
        else:
            pictures, alone = real.detach().requires_grad_(), InputAlone()
            with alone.forward():
                output, score = penalised(pictures)
            with alone.backward():
                (gradient,) = torch.autograd.grad(output.sum(), pictures, create_graph=True)
        penalty = penalty + gradient.square().flatten(1).sum(dim=1)
        scores.append(score)
    assert isinstance(penalty, Tensor)  # there is a scale
    return tuple(scores), penalty
