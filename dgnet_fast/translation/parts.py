"""What a training step of UNIT computes, as plain functions: passes that others build on (`encode`, `decode`), and the
terms of the objective in parts that share nothing but the results of these passes. `dgnet_fast.translation.step` puts
them in their order.

A step trains a pair of domains (k, l). Streams are tuples: the first entry belongs to domain k and the second to l.
The networks of the two streams differ, so a stream is a loop and not a dimension; everything that goes through one
network goes through it in one batch. "The other stream" is the tuple backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.models.unit import Unit
from dgnet_fast.training.losses import discriminator_term, generator_term, l1_terms, wide
from dgnet_fast.training.parts import frozen
from dgnet_fast.training.runner import Terms

STREAMS = 2

Pair = tuple[int, int]
Streams = tuple[Tensor, ...]


class Decoded(NamedTuple):
    """Pictures (B, 3, H, W) of each stream: ``own`` decoded from the stream's own code (x_a_recon, x_b_recon), and
    ``translated`` from the code of the other stream (x_ba, x_ab).
    """

    own: Streams
    translated: Streams


def encode(model: Unit, pictures: Streams, pair: Pair) -> Streams:
    """The codes h of both streams, without noise."""
    return tuple(model.encoders[d](x) for d, x in zip(pair, pictures, strict=True))


def decode(model: Unit, codes: Streams, noise: Streams, pair: Pair) -> Decoded:
    """Both decoders on both codes; the same noise is added to a code for both."""
    noisy = [h + n for h, n in zip(codes, noise, strict=True)]
    own, translated = [], []
    for stream, domain in enumerate(pair):
        both = model.decoders[domain](torch.cat([noisy[stream], noisy[1 - stream]]))
        first, second = both.chunk(2)
        own.append(first)
        translated.append(second)
    return Decoded(tuple(own), tuple(translated))


@torch.no_grad()
def translate_alone(model: Unit, codes: Streams, noise: Streams, pair: Pair) -> Streams:
    """The translated pictures alone, x_ba and x_ab, without a graph: what D learns from."""
    noisy = [h + n for h, n in zip(codes, noise, strict=True)]
    return tuple(model.decoders[d](n) for d, n in zip(pair, reversed(noisy), strict=True))


def discriminator_part(model: Unit, translated: Streams, pictures: Streams, pair: Pair) -> Terms:
    """What both Ds learn: translated pictures are 0, real ones 1. One batch for each D, unless BatchNorm ties it."""
    terms = []
    for domain, fake, real in zip(pair, translated, pictures, strict=True):
        network = model.discriminators[domain]
        if model.mixes_samples:
            scores = [*zip(network(fake.detach()), network(real), strict=True)]
        else:
            scores = [one.chunk(2) for one in network(torch.cat([fake.detach(), real.to(fake.dtype)]))]
        fakes, reals = zip(*scores, strict=True)
        terms.append(discriminator_term(_one(fakes), _one(reals), model.config.dis.gan_type))
    found = torch.cat(terms)
    return {"dis": found, "total": model.config.gan_w * found.sum()}


def adversarial_part(model: Unit, decoded: Decoded, pair: Pair) -> Terms:
    """What the Ds, which are constant here, make of the translated pictures."""
    terms = []
    for domain, fake in zip(pair, decoded.translated, strict=True):
        scores = frozen(model.discriminators[domain], fake)
        terms.append(generator_term(_one(scores), model.config.dis.gan_type, weight=1.0))
    return with_total(model.config, {"adv": torch.cat(terms)})


def reconstruction_part(model: Unit, codes: Streams, decoded: Decoded, pictures: Streams) -> Terms:
    """Pictures come back from their own codes, and the codes stay near 0."""
    terms = {"recon_x": _l1(decoded.own, pictures), "recon_kl": _mean_squares(codes)}
    return with_total(model.config, terms)


def cycle_part(model: Unit, decoded: Decoded, pictures: Streams, noise: Streams, pair: Pair) -> Terms:
    """Translated pictures are encoded and translated back. ``noise`` is added to the codes of x_ba and x_ab, in that
    order. The terms of a stream are those of the pictures that come back to it.
    """
    config = model.config
    codes = encode(model, decoded.translated, pair)  # h_ba, h_ab
    terms = {"recon_kl_cyc": _mean_squares(tuple(reversed(codes)))}  # h_ab goes with x_aba
    if config.recon_x_cyc_w > 0:
        returned = back(model, codes, noise, pair)
        terms["recon_x_cyc"] = _l1(returned, pictures)
    return with_total(config, terms)


def back(model: Unit, codes: Streams, noise: Streams, pair: Pair) -> Streams:
    """x_aba from h_ab, and x_bab from h_ba."""
    noisy = [h + n for h, n in zip(codes, noise, strict=True)]
    return tuple(model.decoders[d](n) for d, n in zip(pair, reversed(noisy), strict=True))


def perceptual_part(model: Unit, decoded: Decoded, pictures: Streams) -> Terms:
    """Features of a translated picture, instance-normed, stay those of the picture that it was made from. VGG-16 sees the
    pictures of both streams in one batch, and the sources without a graph.
    """
    if model.perceptual is None:
        return {}
    translated = model.perceptual(torch.cat(decoded.translated))
    with torch.no_grad():
        sources = torch.cat(tuple(reversed(pictures)))
        wanted = model.perceptual(sources.to(decoded.translated[0].dtype))
    square = (wide(translated) - wide(wanted)).square()
    return with_total(model.config, {"vgg": square.unflatten(0, (STREAMS, -1)).flatten(1).mean(dim=1)})


def _one(scores: Sequence[Tensor]) -> list[Tensor]:
    """Score maps as streams of their own, (1, B, 1, h, w)."""
    return [score.unsqueeze(0) for score in scores]


def _l1(ours: Streams, wanted: Streams) -> Tensor:
    """(S,): mean absolute difference of each stream."""
    return l1_terms([(x[None], y[None]) for x, y in zip(ours, wanted, strict=True)])[:, 0]


def _mean_squares(codes: Streams) -> Tensor:
    """(S,): the mean over all elements, which stands for the KL divergence (the variance is fixed)."""
    return torch.stack([wide(h).square().mean() for h in codes])


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


def with_total(config: UnitConfig, terms: Terms) -> Terms:
    """The terms and their weighted sum ``total``."""
    weights = term_weights(config)
    weighted = [weights[name] * value.sum() for name, value in terms.items()]
    return terms | {"total": torch.stack(weighted).sum()}
