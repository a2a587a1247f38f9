"""What a training step of DG-Net computes (the paper's figure 2), as plain functions: two passes that others build on,
E_a's over the real pictures (`encode_appearance`) and E_s and G's (`forward_pass`), and the terms of the objective in
parts that share nothing but the results of the two passes: D's (`discriminator_parts`), and those of E_s, G and E_a
(`identity_part` and `GENERATOR_PARTS`). `dgnet_fast.training.step` puts them in their order. A term whose ramped weight
is 0 is absent (a weight that is a tensor is taken to be above 0).

Streams a and b are the first dimension of every tensor, (S, B, ...) with S = 2; "the other stream" is
``flip(0)``. E_s, G and D mix no samples, so all their inputs of a pass go through in one batch; E_a's passes
are groups of one batch (see `dgnet_fast.models.batch_norm`), or with ``bn_together`` one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dgnet_fast.config import Config
from dgnet_fast.data import Batch, erase
from dgnet_fast.models.appearance_encoder import upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.models.structure_input import structure_input
from dgnet_fast.models.teacher import teacher_labels
from dgnet_fast.training import losses
from dgnet_fast.training.runner import Terms
from dgnet_fast.training.schedule import Weights, is_present

STREAMS = 2


class Settings(NamedTuple):
    """What a step's parts go by: loss weights, whether structure reconstruction trains E_s (`reconstruction_part`), and
    whether E_a's heads drop out.
    """

    weights: Weights
    train_encoder: bool
    dropout: bool


class Encoded(NamedTuple):
    """What E_a makes of x_a, x_b, xp_a, xp_b, in that order: code (2·S·B, 4·C) and logits (2·S·B, ids) per head; and
    with ``bn_together`` the logits ``more`` of further real pictures, which then share the pass.

    No logits with random erasing, which takes those of erased copies (`identity_part`).
    """

    code: Tensor
    logits: tuple[Tensor, ...]
    more: tuple[Tensor, ...] = ()


class Forward(NamedTuple):
    """What E_s and G make of x; every tensor starts (S, B, ...), stream a first.

    structure, code: of x. swapped[k]: appearance of stream k in the structure of the other (x_ba, x_ab).
    self_recon, same_id_recon: x decoded with its own code and with its positive's.
    """

    structure: Tensor
    code: Tensor
    swapped: Tensor
    self_recon: Tensor
    same_id_recon: Tensor


def detached(module: nn.Module) -> dict[str, Tensor]:
    """Parameters as constants: with ``torch.func.functional_call`` a frozen view of the module, no copy."""
    return {name: p.detach() for name, p in module.named_parameters()}


def frozen(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a module returns with its parameters as constants: gradient reaches the inputs only, no weight
    gradients are made.
    """
    return torch.func.functional_call(module, detached(module), args, kwargs)


def split_streams(x: Tensor, parts: int = STREAMS) -> Tensor:
    """(parts·B, ...) → (parts, B, ...)."""
    return x.unflatten(0, (parts, -1))


def batch_norm_groups(config: Config, batches: int) -> int:
    """How many batches a pass over ``batches`` of them is to E_a's BatchNorms: one with ``bn_together``."""
    return 1 if config.bn_together else batches


def appearance_pictures(model: DGNet, batch: Batch) -> Tensor:
    """x_a, x_b, xp_a, xp_b one after the other as E_a sees them."""
    return upsample_small(
        torch.cat([batch.x.flatten(0, 1), batch.xp.flatten(0, 1)]), model.config.ID_upsample
    )


def encode_appearance(model: DGNet, batch: Batch, *, dropout: bool = True) -> Encoded:
    """E_a on `appearance_pictures`; where no gradient can flow (style AB with random erasing) without a graph."""
    erasing = batch.erasing_boxes is not None
    codes_alone = erasing and model.config.ID_style == "AB"
    pictures = appearance_pictures(model, batch)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not codes_alone):
        if not erasing:
            return _all_real(model, pictures, batch, dropout)
        mode = BatchNormMode(batch_norm_groups(model.config, 2 * STREAMS), "update")
        return Encoded(model.appearance_encoder(pictures, mode, dropout=dropout).code, ())


def _all_real(model: DGNet, pictures: Tensor, batch: Batch, dropout: bool) -> Encoded:
    """E_a on x_a, x_b, xp_a, xp_b or their erased copies; with ``bn_together`` on further real pictures too."""
    mode, count = BatchNormMode(batch_norm_groups(model.config, 2 * STREAMS), "update"), len(pictures)
    if model.config.bn_together and batch.more is not None:
        further = upsample_small(batch.more.flatten(0, 1), model.config.ID_upsample)
        pictures = torch.cat([pictures, further])
    seen = model.appearance_encoder(pictures, mode, dropout=dropout)
    more = tuple(one[count:] for one in seen.logits) if len(pictures) > count else ()
    return Encoded(seen.code[:count], tuple(one[:count] for one in seen.logits), more)


def forward_pass(model: DGNet, batch: Batch, code: Tensor) -> Forward:
    """Structure of both streams and the six decodes in one batch; ``code`` of `Encoded`."""
    code, positive_code = code.chunk(2)
    config = model.config
    grey = structure_input(batch.x.flatten(0, 1), config.single, config.gray_jitter)
    structure = model.structure_encoder(grey)
    crossed = split_streams(structure).flip(0).flatten(0, 1)
    decoded = model.decode(torch.cat([crossed, structure, structure]), torch.cat([code, code, positive_code]))
    swapped, self_recon, same_id_recon = decoded.unflatten(0, (3, STREAMS, -1))
    return Forward(split_streams(structure), split_streams(code), swapped, self_recon, same_id_recon)


@torch.no_grad()
def swapped_only(model: DGNet, batch: Batch) -> Tensor:
    """The swapped pictures alone, without a graph or a change of running statistics (for accumulated D
    updates).
    """
    pictures = batch.x.flatten(0, 1)
    structure = model.structure_encoder(structure_input(pictures, model.config.single))
    upsampled = upsample_small(pictures, model.config.ID_upsample)
    mode = BatchNormMode(batch_norm_groups(model.config, STREAMS), "batch")
    code = model.appearance_encoder(upsampled, mode).code
    return split_streams(model.decode(split_streams(structure).flip(0).flatten(0, 1), code))


def fake_part(model: DGNet, swapped: Tensor, real: Tensor) -> Terms:
    """D's terms of generated pictures (S, B, 3, H, W); ``total`` is weighted by gan_w."""
    scores = model.discriminator(swapped.detach().flatten(0, 1))
    scores = [split_streams(one, len(swapped)) for one in scores]
    adversarial = losses.discriminator_term(scores, [], model.config.dis.gan_type)
    return {"dis": adversarial, "total": model.config.gan_w * adversarial.sum()}


def real_part(model: DGNet, swapped: Tensor, real: Tensor) -> Terms:
    """D's terms of real pictures (S, B, 3, H, W), gradient penalty included; ``total`` is weighted by gan_w."""
    config = model.config
    scores, penalty = losses.real_scores_and_penalty(model.discriminator, real.flatten(0, 1))
    scores = [split_streams(one, len(real)) for one in scores]
    penalty = config.dis.LAMBDA * split_streams(penalty, len(real)).mean(dim=1)
    value = losses.discriminator_term([], scores, config.dis.gan_type) + penalty
    return {"dis": value, "dis_penalty": penalty, "total": config.gan_w * value.sum()}


def streamwise_part(model: DGNet, swapped: Tensor, real: Tensor) -> Terms:
    """D's terms where its BatchNorm ties a batch together: fake before real, stream after stream, as the public code
    moves the running statistics.
    """
    streams = []
    for pictures in zip(swapped.split(1), real.split(1), strict=True):
        fake, true = fake_part(model, *pictures), real_part(model, *pictures)
        streams.append(true | {name: fake[name] + true[name] for name in fake})
    return {
        name: sum(found[1:], found[0]) if name == "total" else torch.cat(found)
        for name, found in ((name, [one[name] for one in streams]) for name in streams[0])
    }


def discriminator_parts(discriminator: Discriminator) -> tuple[Callable[..., Terms], ...]:
    """What D learns from, each (model, swapped, real) → `Terms`."""
    return (streamwise_part,) if discriminator.mixes_samples else (fake_part, real_part)


def identity_part(model: DGNet, encoded: Encoded, batch: Batch, settings: Settings) -> Terms:
    """E_a tells real people apart; with random erasing from erased copies of the pictures, in a pass of their own."""
    if batch.erasing_boxes is not None:
        pictures = erase(appearance_pictures(model, batch), batch.erasing_boxes.flatten(0, 1))
        encoded = _all_real(model, pictures, batch, settings.dropout)
    real, positive = zip(*(one.chunk(2) for one in encoded.logits), strict=True)
    terms = real_terms(model, settings, {"id": real, "pid": positive}, batch.labels)
    if encoded.more:
        assert batch.more_labels is not None
        more = real_terms(model, settings, {"id_more": encoded.more}, batch.more_labels)
        terms |= more | {"total": terms["total"] + more["total"]}
    return terms


def more_apart(model: DGNet, batch: Batch) -> bool:
    """Whether further real pictures have a pass of their own (`more_real_part`)."""
    return batch.more is not None and not model.config.bn_together


def more_real_part(model: DGNet, batch: Batch, settings: Settings) -> Terms:
    """E_a tells the people of further real pictures apart (``real_batch``), all in one batch to BatchNorm, as the teacher
    sees them. The paper's step has no such part. With ``bn_together`` they are in `identity_part`.

    Without it E_a sees batches of ``batch_size`` pictures, and falls behind a baseline that trains as long on larger ones.
    """
    more, labels = batch.more, batch.more_labels
    assert more is not None and labels is not None  # who has none does not call this
    pictures = upsample_small(more.flatten(0, 1), model.config.ID_upsample)
    logits = model.appearance_encoder(pictures, BatchNormMode(1, "update"), dropout=settings.dropout).logits
    return real_terms(model, settings, {"id_more": logits}, labels)


def real_terms(
    model: DGNet, settings: Settings, logits: Mapping[str, Sequence[Tensor]], labels: Tensor
) -> Terms:
    """The identity loss of real people, (S,) for each name, from the logits of E_a's heads.

    In style AB the second head's is part of the first name's. At weight 0 that head still takes weight decay, as a zero
    gradient (not None) gives it.
    """
    config, first = model.config, next(iter(logits))
    identities = {
        name: [(one, labels) for one in heads[: identity_heads(config, heads)]]
        for name, heads in logits.items()
    }
    if config.ID_style == "AB":
        identities["fine"] = [(one, labels) for one in logits[first][1:]]
    terms = losses.mean_identity_terms(identities)
    if config.ID_style == "AB":
        terms[first] = terms[first] + settings.weights.teacher_w * config.B_w * terms.pop("fine")
    return with_total(model, settings.weights, terms)


def identity_heads(config: Config, logits: Sequence[Tensor]) -> int:
    """How many of E_a's heads learn the identity: in style AB the first; the second is the fine-grained one."""
    return 1 if config.ID_style == "AB" else len(logits)


def adversarial_part(model: DGNet, forward: Forward, batch: Batch, settings: Settings) -> Terms:
    """What D makes of the swapped pictures; stream after stream where its BatchNorm ties a batch together."""
    apart = 1 if model.discriminator.mixes_samples else STREAMS
    scores = [
        [split_streams(one, len(part)) for one in frozen(model.discriminator, part.flatten(0, 1))]
        for part in forward.swapped.split(apart)
    ]
    scores = [torch.cat(one) for one in zip(*scores, strict=True)]
    term = losses.generator_term(scores, model.config.dis.gan_type)
    return {"adv": term, "total": model.config.gan_w * term.sum()}


def reconstruction_part(model: DGNet, forward: Forward, batch: Batch, settings: Settings) -> Terms:
    """Pictures and codes come back: x from its own codes and from the positive's; codes, identity and x again from the
    swapped pictures.

    ``settings.train_encoder``: structure reconstruction trains E_s on the generated picture held fixed; otherwise a
    frozen E_s passes the gradient on to the picture.
    """
    config, weights = model.config, settings.weights
    swapped = forward.swapped.flatten(0, 1)

    # structure again: stream k's structure is in the other stream's swap
    if is_present(weights.recon_s_w) or is_present(weights.recon_x_cyc_w):
        if settings.train_encoder:
            structure_again = model.structure_encoder(structure_input(swapped.detach(), config.single))
        else:
            structure_again = frozen(model.structure_encoder, structure_input(swapped, config.single))
        structure_again = split_streams(structure_again).flip(0)

    # appearance again: a frozen view of E_a, batch statistics in its BatchNorms when train_bn
    groups = batch_norm_groups(config, STREAMS)
    mode = BatchNormMode(groups, "batch") if config.train_bn else BatchNormMode()
    attached = config.code_w > 0
    upsampled = upsample_small(swapped, config.ID_upsample)
    again = frozen(model.appearance_encoder, upsampled, mode, attached=attached)
    code_again = again.code.detach() if config.ID_style == "AB" else again.code

    pictures = {
        "recon_x": (forward.self_recon, batch.x),
        "recon_xp": (forward.same_id_recon, batch.x),
    }
    if is_present(weights.recon_s_w):
        pictures["recon_s"] = structure_again, forward.structure
    if is_present(weights.recon_f_w):
        pictures["recon_f"] = split_streams(code_again), forward.code
    if is_present(weights.recon_x_cyc_w):
        cycled = model.decode(structure_again.flatten(0, 1), code_again)
        pictures["recon_x_cyc"] = split_streams(cycled), batch.x

    terms = dict(zip(pictures, losses.l1_terms(list(pictures.values())), strict=True))
    if attached:
        wanted = forward.code.detach()
        deviation = losses.deviation_of(losses.wide(wanted.flatten(0, 1)))
        terms["code"] = losses.code_error(split_streams(again.code), wanted, deviation)
    heads = again.logits[: identity_heads(config, again.logits)]
    terms |= losses.mean_identity_terms({"recon_id": [(one, batch.labels) for one in heads]})
    return with_total(model, settings.weights, terms)


def trains_on_generated(model: DGNet, settings: Settings) -> bool:
    """Whether E_a learns from generated pictures in this step (`teacher_part`)."""
    config = model.config
    lessons = config.ID_style != "AB" or config.T_w > 0 or config.fine_on_generated
    asked = config.train_on_generated and lessons and bool(config.teacher) and config.ID_style != "PCB"
    return asked and is_present(settings.weights.teacher_w)


def teacher_part(model: DGNet, forward: Forward, batch: Batch, settings: Settings) -> Terms:
    """E_a learns from generated pictures, held fixed: the teacher's labels (primary) and, in style AB, the structure
    provider's identity (fine-grained, with ``fine_on_generated``). Its BatchNorms see them in train mode, which moves the
    running statistics unless ``bn_together``.
    """
    config = model.config
    if not trains_on_generated(model, settings):
        return {}
    other = batch.labels.flip(0)
    upsampled = upsample_small(forward.swapped.detach().flatten(0, 1), config.ID_upsample)
    weights = {"teacher_kl": 1.0}
    if config.ID_style == "AB":
        weights = {"teacher_kl": config.T_w}
        if config.fine_on_generated:
            weights["teacher_fine"] = config.B_w
    target = None
    if weights["teacher_kl"]:  # else nobody asks the teachers
        target = teacher_labels(
            model.teachers,
            split_streams(upsampled),
            batch.labels,
            other,
            ids=config.ID_class,
            style=config.teacher_style,
            batch_statistics=config.train_bn,
            together=config.bn_together,
        )
    mode = BatchNormMode(batch_norm_groups(config, STREAMS), "batch" if config.bn_together else "update")
    student = model.appearance_encoder(upsampled, mode, dropout=settings.dropout)
    pairs = {}
    if target is not None:
        pairs["teacher_kl"] = [(student.logits[0], target)]
    if "teacher_fine" in weights:
        pairs["teacher_fine"] = [(one, other) for one in student.logits[1:]]
    terms = losses.mean_identity_terms(pairs)
    first, *others = (weights[name] * terms[name] for name in pairs)
    terms["teacher"] = sum(others, first)
    return with_total(model, settings.weights, terms)


GENERATOR_PARTS = (adversarial_part, reconstruction_part, teacher_part)
"""What E_s, G and E_a learn from generated pictures, each (model, forward, batch, settings) → `Terms`.

The teacher's comes last: the frozen E_a of the reconstruction may read the running statistics that it moves.
"""


def with_total(model: DGNet, weights: Weights, terms: Terms) -> Terms:
    """The terms and their weighted sum ``total``."""
    weighted = term_weights(model, weights)
    shares = [weighted[name] * value for name, value in terms.items() if name in weighted]
    return terms | {"total": torch.cat(shares).sum()}  # a part has a term with a weight


def term_weights(model: DGNet, weights: Weights) -> dict[str, float | Tensor]:
    """Weight in force of every term in the total of E_s, G and E_a."""
    config = model.config
    return {
        "adv": config.gan_w,
        "recon_x": config.recon_x_w,
        "recon_xp": config.recon_xp_w,
        "recon_f": weights.recon_f_w,
        "code": config.code_w,
        "recon_s": weights.recon_s_w,
        "recon_x_cyc": weights.recon_x_cyc_w,
        "id": config.id_w,
        "pid": config.pid_w,
        "id_more": config.id_w,
        "recon_id": config.recon_id_w,
        "teacher": weights.teacher_w,
    }
