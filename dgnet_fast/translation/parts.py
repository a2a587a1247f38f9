"""What a training step of UNIT computes, as plain functions: passes that others build on (`encode`, `decode`), and the
terms of the objective in parts that share nothing but the results of these passes. `dgnet_fast.translation.step` puts
them in their order.

A step trains a pair of domains (k, l). Streams are tuples: the first entry belongs to domain k and the second to l.
The networks of the two streams differ, so a stream is a loop and not a dimension. Passes and parts are those of one
stream, which `Place` names, so that the activations of one stream live at a time; what goes through one network there
goes through it in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.models.recompute import recomputed
from dgnet_fast.models.unit import Unit
from dgnet_fast.training.losses import discriminator_term, generator_term, l1_terms, wide
from dgnet_fast.training.parts import frozen
from dgnet_fast.training.runner import Terms

STREAMS = 2

Pair = tuple[int, int]
Streams = tuple[Tensor, ...]


class Place(NamedTuple):
    """A stream of a step: its ``index`` in the step's tuples, its ``domain``, and the domain of the ``other`` stream."""

    index: int
    domain: int
    other: int


def places(pair: Pair) -> tuple[Place, Place]:
    """The streams of a step that trains these domains."""
    first, second = pair
    return Place(0, first, second), Place(1, second, first)


class Decoded(NamedTuple):
    """Pictures (B, 3, H, W) that the decoder of a stream makes: ``own`` of the stream's own code (x_a_recon), and
    ``translated`` of the code of the other stream (x_ba).
    """

    own: Tensor
    translated: Tensor


def encode(model: Unit, pictures: Streams, pair: Pair) -> Streams:
    """The codes h of both streams, without noise."""
    return tuple(_kept(model, model.encoders[d], x) for d, x in zip(pair, pictures, strict=True))


def _kept(model: Unit, network: nn.Module, x: Tensor) -> Tensor:
    """``network(x)``, whose activations are kept for the backward pass unless the options say otherwise."""
    return recomputed(network, x) if model.config.checkpoint_activations else network(x)


def decode(model: Unit, codes: Streams, noise: Streams, place: Place) -> Decoded:
    """The stream's decoder on both codes."""
    noisy = [h + n for h, n in zip(codes, noise, strict=True)]
    inputs = torch.cat([noisy[place.index], noisy[1 - place.index]])
    both = _kept(model, model.decoders[place.domain], inputs)
    return Decoded(*both.chunk(2))


@torch.no_grad()
def translate_alone(model: Unit, code: Tensor, noise: Tensor, place: Place) -> Tensor:
    """The translated picture alone, x_ba of the code and the noise of b, without a graph: what D learns from."""
    return model.decoders[place.domain](code + noise)


def discriminator_part(model: Unit, translated: Tensor, pictures: Tensor, place: Place) -> Terms:
    """What the stream's D learns: translated pictures are 0, real ones 1. One batch, unless BatchNorm ties it."""
    network, fake = model.discriminators[place.domain], translated.detach()
    if model.mixes_samples:
        scores = [*zip(network(fake), network(pictures), strict=True)]
    else:
        scores = [one.chunk(2) for one in network(torch.cat([fake, pictures.to(fake.dtype)]))]
    fakes, reals = zip(*scores, strict=True)
    term = discriminator_term(_one(fakes), _one(reals), model.config.dis.gan_type)
    return {"dis": _placed(term, place), "total": model.config.gan_w * term.sum()}


def adversarial_part(model: Unit, decoded: Decoded, place: Place) -> Terms:
    """What the stream's D, which is constant here, makes of the translated pictures."""
    scores = frozen(model.discriminators[place.domain], decoded.translated)
    term = generator_term(_one(scores), model.config.dis.gan_type, weight=1.0)
    return with_total(model.config, {"adv": term}, place)


def reconstruction_part(model: Unit, code: Tensor, decoded: Decoded, pictures: Tensor, place: Place) -> Terms:
    """Pictures come back from their own code, and the code stays near 0."""
    terms = {"recon_x": _l1(decoded.own, pictures), "recon_kl": _mean_square(code)}
    return with_total(model.config, terms, place)


def cycle_part(model: Unit, decoded: Decoded, sources: Tensor, noise: Tensor, place: Place) -> Terms:
    """Translated pictures are encoded and translated back to the other stream: x_ba is encoded to h_ba, ``noise`` is added
    and x_bab decoded, to be ``sources``, the pictures of b. The terms are those of the other stream.
    """
    config, back = model.config, Place(1 - place.index, place.other, place.domain)
    code = _kept(model, model.encoders[place.domain], decoded.translated)
    terms = {"recon_kl_cyc": _mean_square(code)}
    if config.recon_x_cyc_w > 0:
        terms["recon_x_cyc"] = _l1(model.decoders[back.domain](code + noise), sources)
    return with_total(config, terms, back)


def perceptual_part(model: Unit, decoded: Decoded, sources: Tensor, place: Place) -> Terms:
    """Features of a translated picture, instance-normed, stay those of the picture that it was made from, which VGG-16
    sees without a graph.
    """
    if model.perceptual is None:
        return {}
    translated = model.perceptual(decoded.translated)
    with torch.no_grad():
        wanted = model.perceptual(sources.to(decoded.translated.dtype))
    return with_total(model.config, {"vgg": _mean_square(wide(translated) - wide(wanted))}, place)


def _one(scores: Sequence[Tensor]) -> list[Tensor]:
    """Score maps as streams of their own, (1, B, 1, h, w)."""
    return [score.unsqueeze(0) for score in scores]


def _l1(ours: Tensor, wanted: Tensor) -> Tensor:
    """(1,): mean absolute difference."""
    return l1_terms([(ours[None], wanted[None])])[0]


def _mean_square(x: Tensor) -> Tensor:
    """(1,): the mean over all elements; of a code it stands for the KL divergence (the variance is fixed)."""
    return wide(x).square().mean()[None]


def _placed(term: Tensor, place: Place) -> Tensor:
    """A term (1,) of a stream among those of all streams, (S,), which add up."""
    return F.pad(term, (place.index, STREAMS - 1 - place.index))


def term_weights(config: UnitConfig) -> dict[str, float]:
    """The weight of every term in the total of encoders and decoders."""
    return {
        "adv": config.gan_w,
        "recon_x": config.recon_x_w,
        "recon_kl": config.recon_kl_w,
        "recon_x_cyc": config.recon_x_cyc_w,
        "recon_kl_cyc": config.recon_kl_cyc_w,
        "vgg": config.vgg_w,
    }


def with_total(config: UnitConfig, terms: Terms, place: Place) -> Terms:
    """The terms, (1,) each, in their place among those of all streams, and their weighted sum ``total``."""
    weights = term_weights(config)
    total = torch.cat([weights[name] * value for name, value in terms.items()]).sum()
    return {name: _placed(value, place) for name, value in terms.items()} | {"total": total}
