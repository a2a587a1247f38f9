"""The terms of the objective: pure functions of tensors, no state and no host synchronisation.

Terms that exist once per stream return a vector of S values, one per stream (S is 2: a and b). Pictures and
codes come with the stream as first dimension: (S, B, ...).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.models.discriminator import Discriminator

DRIFT = 0.001
"""Weight of the squared scores in the Wasserstein losses (keeps D from drifting)."""


def wide(x: Tensor) -> Tensor:
    """At least float32: every loss is computed there, whatever precision the networks ran in."""
    return x if x.dtype == torch.float64 else x.float()


def stream_mean(x: Tensor) -> Tensor:
    """(S, ...) → (S,): mean of everything but the stream."""
    return x.flatten(1).mean(dim=1)


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference per stream; no gradient reaches the target."""
    return stream_mean((wide(prediction) - wide(target.detach())).abs())


def cross_entropy(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Identity loss per stream, averaged over heads: logits (S·B, ids) each, labels (S, B) → (S,)."""
    terms = [F.cross_entropy(wide(one), labels.flatten(), reduction="none").view_as(labels) for one in logits]
    return torch.stack(terms).mean(dim=(0, 2))


def soft_label_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target ‖ softmax(logits)) per stream: logits (S·B, ids), target (S, B, ids) → (S,), sum over ids,
    mean over B.
    """
    divergence = F.kl_div(F.log_softmax(wide(logits), dim=1), target.flatten(0, 1), reduction="none")
    return divergence.sum(dim=1).view(target.shape[:2]).mean(dim=1)


def discriminator_adversarial(fake: Sequence[Tensor], real: Sequence[Tensor], kind: str) -> Tensor:
    """D's adversarial loss per stream, summed over scales; every score map is (S, B, 1, h, w)."""
    total = 0
    for f, r in zip(map(wide, fake), map(wide, real), strict=True):
        match kind:
            case "lsgan":
                total = total + stream_mean(f.square()) + stream_mean((r - 1).square())
            case "nsgan":
                total = total + stream_mean(F.softplus(f)) + stream_mean(F.softplus(-r))
            case "wgan":
                squares = f.square().flatten(1).sum(1) + r.square().flatten(1).sum(1)
                total = total + stream_mean(f) - stream_mean(r) + DRIFT * squares
            case _:
                raise ValueError(f"gan_type is {kind!r}; allowed: lsgan, nsgan, wgan")
    return total


def generator_adversarial(fake: Sequence[Tensor], kind: str) -> Tensor:
    """The generator's adversarial loss per stream, summed over scales; score maps (S, B, 1, h, w)."""
    total = 0
    for f in map(wide, fake):
        match kind:
            case "lsgan":
                total = total + 2 * stream_mean((f - 1).square())
            case "nsgan":
                total = total + stream_mean(F.softplus(-f))
            case "wgan":
                total = total - stream_mean(f) + DRIFT * f.square().flatten(1).sum(1)
            case _:
                raise ValueError(f"gan_type is {kind!r}; allowed: lsgan, nsgan, wgan")
    return total


def real_scores_and_penalty(discriminator: Discriminator, real: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """D's scores of real pictures (N, 3, H, W), and per sample ‖∂ sum D(real) / ∂ real‖² summed over scales,
    (N,).

    For ``nsgan`` the gradient is that of the score after the sigmoid. Written with ``torch.func.vjp``, one
    scale at a time (no pass through the nets of other scales), so that torch.compile takes the double
    backward in one graph.
    """
    scores, penalty = [], 0
    for k in range(len(discriminator.scales)):

        def penalised(x: Tensor, k: int = k) -> tuple[Tensor, Tensor]:
            score = discriminator.score(discriminator.shrink(x, k), k)
            return (score.sigmoid() if discriminator.kind == "nsgan" else score), score

        output, pullback, score = torch.func.vjp(penalised, real, has_aux=True)
        (gradient,) = pullback(torch.ones_like(output))
        penalty = penalty + gradient.square().flatten(1).sum(dim=1)
        scores.append(score)
    return tuple(scores), penalty
